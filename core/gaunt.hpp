// The form of the Gaunt tensor product on a spherical grid: for each slot (two inputs, output) the transform of its components to
// the rings of a Gauss-Legendre grid, and the quadrature that projects a signal on the rings back to components.
#pragma once
#include "block_map.hpp"
#include "legendre.hpp"
#include "series.hpp"

namespace equitensor {

struct GridComponent {
  int l, m, part;  // part: components of one parity, multiplied separately where parities would mix
};

struct GauntSlotForm {
  int degree = 0, parts = 1;
  int rings_size = 0;                         // northern rings * parts * 2 * (2 degree + 1)
  // components <-> [northern ring][part][even, odd][order + degree], whose sum is the ring and whose difference its mirror image; or with
  // those two in the places of even and odd, where not folded.
  std::vector<MapEntry> synthesis, analysis;
  std::vector<MapEntry> to_angles, from_angles;
};

// Ring coefficients are those of cpu/gaunt.cpp: [0] the mean, [m] and [-m] half the cosine's and the sine's coefficient. A
// component is x_lm sqrt(4 pi) Y_lm; the output is its mean against the same function. Rings are descending in cos(beta); the
// northern ones stand for both hemispheres.
inline GauntSlotForm gaunt_slot_form(const std::vector<GridComponent>& components, int rings, int angles, bool folded) {
  GauntSlotForm form;
  for (const GridComponent& c : components) {
    form.degree = maximum(form.degree, c.l);
    form.parts = maximum(form.parts, c.part + 1);
  }
  const int orders = 2 * form.degree + 1, half = (rings + 1) / 2;
  form.rings_size = form.parts * 2 * orders * half;
  for (int i = 0; i < int(components.size()); ++i) {
    const GridComponent& c = components[i];
    const int order = absolute(c.m), odd = (c.l + order) % 2;
    for (int ring = 0; ring < half; ++ring) {
      const QuadratureNode node = gauss_legendre(rings, ring);
      if (odd && 2 * ring + 1 == rings) continue;  // odd functions vanish on the equator
      const double value = legendre(c.l, order, node.x);
      const auto add = [&](int place, double value) {
        const int at = ((ring * form.parts + c.part) * 2 + place) * orders + c.m + form.degree;
        form.synthesis.push_back({i, at, order ? value / 2 : value});
        form.analysis.push_back({at, i, node.weight / 2 * value});
      };
      if (folded) {
        add(odd, value);
      } else {
        add(0, value);
        if (2 * ring + 1 != rings) add(1, odd ? -value : value);
      }
    }
  }
  // Values at 2 pi j / angles: even parts at [0, angles / 2], odd parts behind them (j = 1, 2, ...).
  for (int m = -form.degree; m <= form.degree; ++m)
    for (int j = 0; j <= angles / 2; ++j) {
      const int paired = 2 * j != angles && j > 0;
      if (m < 0 && !paired) continue;
      const int at = m < 0 ? angles / 2 + j : j;
      const double value = m < 0 ? sine_pi(-2 * long(m) * j, angles) : cosine_pi(2 * long(m) * j, angles);
      form.to_angles.push_back({m + form.degree, at, m ? 2 * value : 1});
      form.from_angles.push_back({at, m + form.degree, value / angles});
    }
  return form;
}

}  // namespace equitensor
