// Writes sample.xyz: methane and water at 300 K or so, with the energies and forces of an analytic potential: Morse bonds, angles and the repulsion of the
// atoms that are not bound. Forces are central differences of the energy.
//
//   npx tsx examples/potential/make_sample.ts [file]
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { generator } from './model'

interface Molecule {
  species: string[]
  positions: number[][]
  /** Of the other atoms to the first. */
  length: number
  cosine: number
  energy: number
}
const a = 1.09 / Math.sqrt(3), half = (104.5 / 2) * (Math.PI / 180)
const molecules: Molecule[] = [
  { species: ['C', 'H', 'H', 'H', 'H'], positions: [[0, 0, 0], [a, a, a], [a, -a, -a], [-a, a, -a], [-a, -a, a]], length: 1.09, cosine: -1 / 3, energy: -1102.3 },
  { species: ['O', 'H', 'H'], positions: [[0, 0, 0], [0.96 * Math.sin(half), 0.96 * Math.cos(half), 0], [-0.96 * Math.sin(half), 0.96 * Math.cos(half), 0]], length: 0.96, cosine: Math.cos(2 * half), energy: -2081.1 },
]

/** In eV, of positions in Angstrom. */
function energyOf({ length, cosine, energy }: Molecule, r: number[][]): number {
  const bonds = r.slice(1).map((to) => to.map((v, c) => v - r[0]![c]!)), lengths = bonds.map((bond) => Math.hypot(...bond))
  let sum = energy
  lengths.forEach((d, i) => {
    sum += 4.5 * (1 - Math.exp(-1.9 * (d - length))) ** 2
    for (let j = 0; j < i; j++) {
      const cos = bonds[i]!.reduce((dot, v, c) => dot + v * bonds[j]![c]!, 0) / (d * lengths[j]!)
      sum += 1.6 * (cos - cosine) ** 2 + 40 * Math.exp(-3.5 * Math.hypot(...r[i + 1]!.map((v, c) => v - r[j + 1]![c]!)))
    }
  })
  return sum
}

const next = generator(1), normal = () => Math.sqrt(-2 * Math.log(1 - next())) * Math.cos(2 * Math.PI * next())
const text = Array.from({ length: 160 }, (_, k) => {
  const molecule = molecules[k % 2]!, r = molecule.positions.map((position) => position.map((v) => v + 0.06 * normal()))
  const forces = r.map((position, i) =>
    position.map((_, c) => {
      const moved = (h: number) => energyOf(molecule, r.map((p, j) => p.map((v, d) => (i === j && c === d ? v + h : v))))
      return (moved(-1e-4) - moved(1e-4)) / 2e-4
    }),
  )
  const atoms = r.map((position, i) => `${molecule.species[i]} ${[...position, ...forces[i]!].map((v) => v.toFixed(6)).join(' ')}\n`)
  return `${r.length}\nProperties=species:S:1:pos:R:3:forces:R:3 energy=${energyOf(molecule, r).toFixed(6)} pbc="F F F"\n${atoms.join('')}`
})
writeFileSync(process.argv[2] ?? path.join(__dirname, 'sample.xyz'), text.join(''))
