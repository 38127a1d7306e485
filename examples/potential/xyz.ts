// Extended XYZ: a line with the number of atoms, one with key=value pairs, and a line for each atom.
import { readFileSync } from 'node:fs'

export interface Configuration {
  /** Chemical symbols. */
  species: string[]
  /** (atoms, 3), in Angstrom. */
  positions: Float64Array
  /** In eV. */
  energy: number
  /** (atoms, 3), in eV / Angstrom. */
  forces: Float64Array
}

/** @throws Error that names the file and the line. */
export function readXyz(file: string): Configuration[] {
  const lines = readFileSync(file, 'utf8').split('\n'), configurations: Configuration[] = []
  for (let at = 0; at < lines.length && lines[at]!.trim() !== ''; ) {
    const fail = (line: number, expected: string): never => {
      throw new Error(`${file}:${line + 1}: expected ${expected}, got '${(lines[line] ?? '').slice(0, 60)}'`)
    }
    const count = Number(lines[at])
    if (!Number.isInteger(count) || count < 1) fail(at, 'a number of atoms')
    const header = lines[at + 1] ?? ''
    const keys = Object.fromEntries(Array.from(header.matchAll(/(\w+)=(?:"([^"]*)"|(\S+))/g), ([, key, quoted, plain]) => [key, quoted ?? plain]))
    const energy = Number(keys.energy ?? NaN)
    if (!Number.isFinite(energy)) fail(at + 1, 'energy=<number>')
    if (/T/.test(keys.pbc ?? '')) fail(at + 1, 'molecules, without periodic cells (pbc="F F F")')
    // Properties=species:S:1:pos:R:3:forces:R:3: name, type and number of columns.
    const columns: Record<string, number> = {}, properties = (keys.Properties ?? '').split(':')
    for (let i = 0, column = 0; i + 2 < properties.length; i += 3) {
      columns[properties[i]!] = column
      column += Number(properties[i + 2])
    }
    const { species, pos, forces = columns.force } = columns
    if (species === undefined || pos === undefined || forces === undefined) return fail(at + 1, 'Properties with species, pos and forces')
    const configuration: Configuration = { species: [], positions: new Float64Array(3 * count), energy, forces: new Float64Array(3 * count) }
    for (let a = 0; a < count; a++) {
      const line = at + 2 + a, fields = (lines[line] ?? '').trim().split(/\s+/)
      configuration.species.push(fields[species]!)
      for (let c = 0; c < 3; c++) {
        configuration.positions[3 * a + c] = Number(fields[pos + c] ?? NaN)
        configuration.forces[3 * a + c] = Number(fields[forces + c] ?? NaN)
        if (!Number.isFinite(configuration.positions[3 * a + c]! + configuration.forces[3 * a + c]!)) fail(line, 'a symbol, a position and a force')
      }
    }
    configurations.push(configuration)
    at += 2 + count
  }
  return configurations
}
