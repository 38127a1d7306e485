// The loss of energies and forces, and its gradient.
import type { Batch, Potential } from './model'
import type { Tape } from './tape'

export interface Errors {
  /** Sums of squares: of the energy per atom, and of the components of the forces. */
  energy: number
  forces: number
  molecules: number
  components: number
}
/** Nothing yet. */
export const none = (): Errors => ({ energy: 0, forces: 0, molecules: 0, components: 0 })
/** Root mean squares, in meV an atom and meV/Angstrom. */
export const errorsOf = ({ energy, forces, molecules, components }: Errors) => ({ energy: 1000 * Math.sqrt(energy / molecules), forces: 1000 * Math.sqrt(forces / components) })

/**
 * Energies and forces of a batch; `errors` grows by theirs. With a weight of the energy also the gradient of the loss with respect to the weights: of the mean over
 * molecules of that weight times (error of the energy / atoms)^2, plus the mean over components of (error of the force)^2. The caller clears the tape.
 */
export function evaluate(model: Potential, tape: Tape, batch: Batch, weights: Float32Array, errors: Errors, energyWeight?: number) {
  const isTraining = energyWeight !== undefined
  const nodes = model.nodes(weights), positions = tape.constant(batch.positions)
  const energies = model.energies(tape, batch, positions, nodes)
  const [gradient] = tape.gradients([energies], [tape.constant(new Float32Array(batch.count).fill(1))], [positions], isTraining)
  const atomsOf = new Float32Array(batch.count)
  for (const molecule of batch.molecule) atomsOf[molecule]!++
  const ofEnergies = Float32Array.from(batch.energies, (energy, m) => {
    const error = energies.value[m]! - energy
    errors.energy += (error / atomsOf[m]!) ** 2
    return (2 * (energyWeight ?? 0) * error) / (atomsOf[m]! ** 2 * batch.count)
  })
  const forces = gradient ? gradient.value.map((g) => -g) : new Float32Array(batch.forces.length)
  const ofGradient = Float32Array.from(batch.forces, (force, i) => {
    const error = forces[i]! - force
    errors.forces += error ** 2
    return (-2 * error) / batch.forces.length
  })
  errors.molecules += batch.count
  errors.components += batch.forces.length
  const ofWeights = isTraining ? tape.gradients([energies, gradient!], [tape.constant(ofEnergies), tape.constant(ofGradient)], nodes) : []
  return { energies: energies.value, forces, ofWeights }
}
