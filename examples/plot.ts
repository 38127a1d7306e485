// Curves as an SVG, without a library.
export interface Curve {
  name: string
  x: number[]
  y: number[]
}

const colours = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9']

export interface Panel {
  title: string
  curves: Curve[]
}

const escaped = (text: string) => text.replace(/&/g, '&amp;').replace(/</g, '&lt;')

/** Panels side by side with common axes. `logarithmic`: the y axis. */
export function plot(panels: Panel[], axes: { x: string; y: string }, logarithmic = false): string {
  const width = 300, height = 220, left = 56, top = 28, gap = 24
  const all = panels.flatMap(({ curves }) => curves)
  const scaled = (y: number) => (logarithmic ? Math.log10(y) : y)
  const xs = all.flatMap(({ x }) => x), ys = all.flatMap(({ y }) => y.map(scaled)).filter(Number.isFinite)
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = [Math.min(...ys), Math.max(...ys)]
  const place = (x: number, y: number) => [((x - x0) / (x1 - x0 || 1)) * width, height - ((scaled(y) - y0) / (y1 - y0 || 1)) * height]
  const label = (value: number) => Number(value.toPrecision(3)).toString()
  const marks = [0, 0.25, 0.5, 0.75, 1]
  const drawn = panels.map(({ title, curves }, p) => {
    const lines = curves.map(({ name, x, y }, c) => {
      const points = x.map((value, i) => place(value, y[i]!).map((v) => v.toFixed(1)).join()).join(' ')
      return `<polyline fill="none" stroke="${colours[c % colours.length]}" stroke-width="1.5" points="${points}"><title>${escaped(name)}</title></polyline>`
    })
    const ticks = marks.flatMap((t) => {
      const y = y0 + t * (y1 - y0)
      const row = height - t * height
      return [
        `<line x1="0" x2="${width}" y1="${row}" y2="${row}" stroke="#ddd"/>`,
        ...(p === 0 ? [`<text x="-6" y="${row + 4}" text-anchor="end">${label(logarithmic ? 10 ** y : y)}</text>`] : []),
        `<text x="${t * width}" y="${height + 16}" text-anchor="middle">${label(x0 + t * (x1 - x0))}</text>`,
      ]
    })
    return `<g transform="translate(${left + p * (width + gap)},${top})"><text x="${width / 2}" y="-10" text-anchor="middle">${escaped(title)}</text>${ticks.join('')}${lines.join('')}</g>`
  })
  const legend = (panels[0]?.curves ?? []).map(({ name }, c) => `<text x="${left + c * 130}" y="${top + height + 56}" fill="${colours[c % colours.length]}">${escaped(name)}</text>`)
  const total = left + panels.length * (width + gap)
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${total}" height="${top + height + 68}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
${drawn.join('\n')}
<text x="${left + (total - left) / 2}" y="${top + height + 36}" text-anchor="middle">${escaped(axes.x)}</text>
<text transform="translate(14,${top + height / 2}) rotate(-90)" text-anchor="middle">${escaped(axes.y)}</text>
${legend.join('\n')}
</svg>
`
}
