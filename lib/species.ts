// Nodes by species, on devices.
import { cuda } from './cuda'
import type { NativeDeviceSpecies, NativeSpecies } from './native'

const onDevices = new WeakMap<NativeSpecies, Map<number, NativeDeviceSpecies>>()

/** @internal The nodes in the order of their species, in a device's memory; made once. */
export function speciesOnDevice(species: NativeSpecies, device: number): NativeDeviceSpecies {
  let copies = onDevices.get(species)
  if (!copies) onDevices.set(species, (copies = new Map()))
  let copy = copies.get(device)
  if (!copy) copies.set(device, (copy = cuda((addon) => addon.createSpecies(device, species.of, species.sets, species.nodesAtOnce))))
  return copy
}
