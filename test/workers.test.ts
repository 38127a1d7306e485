// Threads of JavaScript and the memory of the process, each in a process of its own: a crash is then a failed test.
import { spawn } from 'node:child_process'
import path from 'node:path'
import { Worker } from 'node:worker_threads'
import { describe, expect, test } from 'vitest'
import { ClebschGordanTensorProduct } from '../lib/index'
import { random, randomArray, root, sameBits } from './support'

const entry = path.join(root, 'dist', 'index.js')

/** Runs a program on the built package and returns what it prints as JSON. */
function run(program: string, ...flags: string[]): Promise<any> {
  const child = spawn(process.execPath, [...flags, '-e', `const equitensor = require(${JSON.stringify(entry)});${program}`])
  let [stdout, stderr] = ['', '']
  child.stdout.on('data', (chunk) => (stdout += chunk))
  child.stderr.on('data', (chunk) => (stderr += chunk))
  return new Promise((resolve, reject) => {
    child.on('close', (code, signal) => {
      if (code === 0) resolve(JSON.parse(stdout))
      else reject(new Error(`ended with ${signal ?? code}: ${stderr}`))
    })
  })
}

// As text, since it runs on the main thread and in workers: an operation and its checksum, a function of a number.
const work = `
  const op = equitensor.ClebschGordanTensorProduct.full('0e+1o+2e', '0e+1o+2e', { threads: 2 })
  const input = (seed, length) => Float32Array.from({ length }, (_, i) => Math.fround(Math.sin(seed + i)))
  const sum = (array) => array.reduce((total, v, i) => total + v * ((i % 7) - 3), 0)
  const job = (seed, batch = 3000) => {
    const x = input(seed, 9 * batch), y = input(seed + 1, 9 * batch)
    const z = op.forward(x, y), g = op.backward(x, y, undefined, z)
    return [sum(z), sum(g.x), sum(g.y)]
  }`

describe('worker threads', () => {
  test('50 terminated in the middle of a call', async () => {
    const { terminated, before, after } = await run(`
      const { Worker } = require('node:worker_threads')
      ${work}
      const busy = \`
        const equitensor = require(${JSON.stringify(entry)})
        const { parentPort } = require('node:worker_threads')
        ${work}
        const x = input(1, 9 * 60000)
        parentPort.postMessage('running')
        for (;;) { const z = op.forward(x, x); op.backward(x, x, undefined, z) }\`
      ;(async () => {
        const before = job(5)
        let terminated = 0
        for (let i = 0; i < 50; i += 5) {
          // Five at a time, each from 0 to 9 ms after it has begun to loop.
          await Promise.all([0, 1, 2, 3, 4].map(async (k) => {
            const worker = new Worker(busy, { eval: true })
            await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
            await new Promise((resolve) => setTimeout(resolve, (i + 3 * k) % 10))
            await worker.terminate()
            terminated++
          }))
        }
        console.log(JSON.stringify({ terminated, before, after: job(5) }))
      })()`)
    expect(terminated).toBe(50)
    expect(after).toEqual(before)
  })

  test('two and the main thread at once give the same results', async () => {
    const { main, workers } = await run(`
      const { Worker } = require('node:worker_threads')
      ${work}
      const program = \`
        const equitensor = require(${JSON.stringify(entry)})
        const { parentPort, workerData } = require('node:worker_threads')
        ${work}
        parentPort.postMessage(Array.from({ length: 30 }, (_, i) => job(workerData + i)))\`
      const workers = [0, 0].map((seed) => new Promise((resolve, reject) =>
        new Worker(program, { eval: true, workerData: seed }).once('message', resolve).once('error', reject)))
      const main = Array.from({ length: 30 }, (_, i) => job(i))
      Promise.all(workers).then((workers) => console.log(JSON.stringify({ main, workers })))`)
    expect(main.flat().every((v: number) => Number.isFinite(v) && v !== 0)).toBe(true)
    expect(workers).toEqual([main, main])
  })

  test('in this process too, beside the addon that it has loaded', async () => {
    const x = randomArray('float32', 9 * 700, random(1)), y = randomArray('float32', 9 * 700, random(2))
    const program = `
      const { ClebschGordanTensorProduct } = require(${JSON.stringify(entry)})
      const { parentPort, workerData: { x, y } } = require('node:worker_threads')
      parentPort.postMessage(ClebschGordanTensorProduct.full('0e+1o+2e', '0e+1o+2e').forward(x, y))`
    const results = [1, 2, 3].map(
      () => new Promise<Float32Array>((resolve, reject) => new Worker(program, { eval: true, workerData: { x, y } }).once('message', resolve).once('error', reject)),
    )
    const expected = ClebschGordanTensorProduct.full('0e+1o+2e', '0e+1o+2e').forward(x, y)
    for (const actual of await Promise.all(results)) expect(sameBits(actual, expected)).toBe(true)
  })

  test('a process that exits with operations alive and workers busy ends normally', async () => {
    expect(await run(`
      const { Worker } = require('node:worker_threads')
      ${work}
      new Worker(\`const equitensor = require(${JSON.stringify(entry)}); ${work}; for (let i = 0; ; i++) job(i)\`, { eval: true })
      setTimeout(() => { console.log(JSON.stringify(job(1).length)); process.exit(0) }, 150)`)).toBe(3)
  })
})

describe('memory', () => {
  // 8 MB a result. If they were freed only when the event loop turns, 200 would hold 1.6 GB.
  test('a synchronous loop does not pile up results', async () => {
    const { peak } = await run(`
      const op = equitensor.ClebschGordanTensorProduct.full('0e+1o', '0e+1o', { backend: 'cpu' })
      const batch = Math.floor(8e6 / (4 * op.irrepsOut.dim))
      const x = new Float32Array(4 * batch).fill(1)
      let peak = 0
      for (let i = 0; i < 200; i++) { op.forward(x, x); peak = Math.max(peak, process.memoryUsage.rss()) }
      console.log(JSON.stringify({ peak }))`)
    // 80 MB were measured for the loop; Node itself takes 50, and V8 decides when it collects.
    expect(peak).toBeLessThan(600e6)
  })

  // The dense plan of 0..5 with itself takes 0.8 MB.
  test.each([['disposed', 'op.dispose()'], ['forgotten', '']])('%s operations free it', async (_name, release) => {
    const grown = await run(`
      const irreps = '0e+1e+2e+3e+4e+5e'
      const make = () => { const op = equitensor.ClebschGordanTensorProduct.full(irreps, irreps, { algorithm: 'dense' }); ${release} }
      // Finalizers run when the event loop turns.
      const rest = async () => { gc(); await new Promise((resolve) => setImmediate(resolve)) }
      ;(async () => {
        for (let i = 0; i < 20; i++) { make(); await rest() }
        const before = process.memoryUsage.rss()
        for (let i = 0; i < 80; i++) { make(); await rest() }
        console.log(JSON.stringify(process.memoryUsage.rss() - before))
      })()`, '--expose-gc')
    // Eighty kept plans are 64 MB; an allocator that keeps some pages for itself stays far below.
    expect(grown).toBeLessThan(25e6)
  })
})
