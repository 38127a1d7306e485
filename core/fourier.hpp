// The form of the Gaunt tensor product in the Fourier basis (Luo, Chen, Krishnapriyan 2024, "Enabling efficient equivariant operations in the
// Fourier basis via Gaunt tensor products"): for each slot the map between its components and its coefficients on the torus
// (fourier_terms.hpp), and transforms between those and values at points.
#pragma once
#include "block_map.hpp"
#include "fourier_terms.hpp"
#include "gaunt.hpp"
#include "irreps.hpp"
#include <set>

namespace equitensor {

// Coefficients u = 0 .. l of the function of legendre.hpp, as in fourier_terms.hpp: half a cosine's for even m, half a sine's for odd m. Only
// u = l mod 2 are not zero. From values at (i + 1/2) pi / (l + 1): by the recurrence on coefficients, at l = 22, three digits would be lost.
inline std::vector<double> legendre_series(int l, int m) {
  const int n = l + 1;
  std::vector<double> series(size_t(n), 0.0);
  for (int i = 0; i < n; ++i) {
    const double value = legendre(l, m, cosine_pi(2 * i + 1, 2 * n), sine_pi(2 * i + 1, 2 * n)) / n;
    for (int u = l % 2; u <= l; u += 2) series[size_t(u)] += value * (m % 2 ? sine_pi(long(u) * (2 * i + 1), 2 * n) : cosine_pi(long(u) * (2 * i + 1), 2 * n));
  }
  return series;
}

struct FourierSlotForm {
  int degree = 0, parts = 1, coefficients = 0;
  std::vector<TorusFrequency> frequencies;  // by part, m and u
  std::vector<MapEntry> synthesis;          // components -> coefficients; of the output, the transpose of reading them off
};

namespace fourier_detail {

// Numbers the frequencies that `values` has, [part, m, u] -> (component's column, value), and makes their entries.
struct Builder {
  struct Value {
    int l;
    double value;
  };
  std::map<std::vector<int>, std::vector<Value>> values;

  FourierSlotForm form(const std::vector<GridComponent>& components) const {
    FourierSlotForm form;
    for (const GridComponent& c : components) form.degree = maximum(form.degree, c.l), form.parts = maximum(form.parts, c.part + 1);
    for (const auto& [key, terms] : values) {
      const TorusFrequency f{key[0], key[1], key[2], form.coefficients};
      form.frequencies.push_back(f);
      form.coefficients += f.m ? 2 : 1;
      for (int i = 0; i < int(components.size()); ++i) {
        const GridComponent& c = components[size_t(i)];
        for (const Value& v : terms)
          if (c.part == f.part && absolute(c.m) == f.m && c.l == v.l) form.synthesis.push_back({i, f.at + (c.m < 0), v.value});
      }
    }
    return form;
  }
};

// Rows of the least left inverse of a matrix (rows >= columns, of full rank), given by columns: row j is the shortest b with b . column i = [i == j].
// By Gram and Schmidt, twice, with one step of refinement: the square of the condition number never enters.
inline std::vector<std::vector<double>> left_inverse(const std::vector<std::vector<double>>& columns) {
  const auto dot = [](const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  const size_t n = columns.size();
  std::vector<std::vector<double>> q = columns, r(n, std::vector<double>(n));  // column j = sum over i <= j of q_i r_ij
  for (size_t j = 0; j < n; ++j) {
    for (int pass = 0; pass < 2; ++pass)
      for (size_t i = 0; i < j; ++i) {
        const double part = dot(q[i], q[j]);
        r[i][j] += part;
        for (size_t u = 0; u < q[j].size(); ++u) q[j][u] -= part * q[i][u];
      }
    r[j][j] = square_root(dot(q[j], q[j]));
    for (double& v : q[j]) v /= r[j][j];
  }
  std::vector<std::vector<double>> rows;
  for (size_t j = 0; j < n; ++j) {
    std::vector<double> row(columns[j].size());
    for (int pass = 0; pass < 2; ++pass) {
      std::vector<double> w(n);
      for (size_t i = 0; i < n; ++i) {
        w[i] = (i == j) - dot(row, columns[i]);
        for (size_t k = 0; k < i; ++k) w[i] -= r[k][i] * w[k];
        w[i] /= r[i][i];
      }
      for (size_t i = 0; i < n; ++i)
        for (size_t u = 0; u < row.size(); ++u) row[u] += w[i] * q[i][u];
    }
    rows.push_back(row);
  }
  return rows;
}

}  // namespace fourier_detail

// A component is x_lm sqrt(4 pi) Y_lm, as in gaunt.hpp.
inline FourierSlotForm fourier_input_form(const std::vector<GridComponent>& components) {
  fourier_detail::Builder builder;
  std::set<std::vector<int>> done;
  for (const GridComponent& c : components) {
    if (c.m < 0 || !done.insert({c.part, c.m, c.l}).second) continue;
    const std::vector<double> series = legendre_series(c.l, c.m);
    for (int u = c.l % 2; u <= c.l; u += 2)
      if (u > 0 || c.m % 2 == 0) builder.values[{c.part, c.m, u}].push_back({c.l, c.m ? series[size_t(u)] / 2 : series[size_t(u)]});
  }
  return builder.form(components);
}

// How much larger the coefficients that read a component off may be, as a vector, than the smallest that do. High frequencies alone would do, since
// degree l is the only one of l, l - 1, ... that has frequency l: fewer coefficients to form and to read. But at high orders that frequency is
// small, and so would be what is left of the digits. Into degree 4 it costs a factor of 5, into 6 of 19, into 22 of 10^7.
constexpr double fourier_largest_amplification = 8;

// The product of two signals is a signal again, of the degrees that `degrees` lists for each part. So its components are its coefficients in the basis
// of those degrees, whose least left inverse is as exact as the integral over the sphere and may leave out low frequencies.
inline FourierSlotForm fourier_output_form(const std::vector<GridComponent>& components, const std::vector<std::set<int>>& degrees) {
  fourier_detail::Builder builder;
  for (size_t part = 0; part < degrees.size(); ++part) {
    std::set<int> wanted;
    for (const GridComponent& c : components)
      if (c.part == int(part)) wanted.insert(c.l);
    for (int m = 0; !wanted.empty() && m <= *wanted.rbegin(); ++m)
      for (int parity = 0; parity < 2; ++parity) {
        std::set<int> left;
        for (int l : wanted)
          if (l >= m && l % 2 == parity) left.insert(l);
        if (left.empty()) continue;
        std::vector<int> basis;
        for (int l : degrees[part])
          if (l >= m && l % 2 == parity) basis.push_back(l);
        const int highest = basis.back(), lowest = parity == 0 && m % 2 ? 2 : parity;
        const auto read_off = [&](int first) {  // l -> row over first, first + 2, ...
          std::vector<int> of;
          std::vector<std::vector<double>> columns;
          for (int l : basis) {
            if (l < first) continue;
            const std::vector<double> series = legendre_series(l, m);
            of.push_back(l);
            columns.emplace_back();
            for (int u = first; u <= highest; u += 2) columns.back().push_back(u > l ? 0 : m ? series[size_t(u)] / 2 : series[size_t(u)]);
          }
          std::map<int, std::vector<double>> rows;
          const auto inverse = fourier_detail::left_inverse(columns);
          for (size_t i = 0; i < of.size(); ++i) rows[of[i]] = inverse[i];
          return rows;
        };
        const auto length = [](const std::vector<double>& row) {
          double sum = 0;
          for (double v : row) sum += v * v;
          return square_root(sum);
        };
        const auto least = read_off(lowest);
        for (int first = highest; first >= lowest; first -= 2)
          for (const auto& [l, row] : read_off(first)) {
            if (!left.count(l) || (first > lowest && length(row) > fourier_largest_amplification * length(least.at(l)))) continue;
            left.erase(l);
            for (size_t i = 0; i < row.size(); ++i)  // some coefficients are zero, up to rounding
              if (absolute(row[i]) > 1e-12 * length(row)) builder.values[{int(part), m, first + 2 * int(i)}].push_back({l, row[i]});
          }
      }
  }
  return builder.form(components);
}

// Each frequency of one with each of the other, by product.
template <class Emit>
void torus_relations(const FourierSlotForm (&forms)[3], const std::vector<PlanProduct>& products, Emit&& emit) {
  const int size = 23;  // degrees to 22
  for (const PlanProduct& p : products) {
    std::vector<int> place(size * size, -1);
    for (const TorusFrequency& h : forms[2].frequencies)
      if (h.part == p.part_out) place[size_t(h.m * size + h.u)] = h.at;
    for (const TorusFrequency& f : forms[0].frequencies)
      for (const TorusFrequency& g : forms[1].frequencies)
        if (f.part == p.part1 && g.part == p.part2)
          relate(f, g, [&](int m, int u) { return place[size_t(m * size + u)]; }, emit);
  }
}

// A fast transform of one axis: a small map, and sums and differences a +- b, in this order, in the place of a and b. Halving is all that pays at
// these sizes: even frequencies are a transform of half the size, odd ones a small dense map with its own symmetry. The transpose, from values to
// coefficients, is the sums and differences in reverse and then the map's transpose.
struct FastTransform {
  std::vector<MapEntry> entries;  // frequency -> value
  std::vector<std::pair<int, int>> butterflies;
  int points = 0;

  long operations() const { return long(entries.size() * 2 + butterflies.size() * 2); }
};

namespace fourier_detail {

struct Scaled {
  int scaled, u;  // the frequency here, and the one of the whole transform
};

// Cosines (or sines) at (i + 1/2) pi / N, into `at` (N places).
inline void half_circle(FastTransform& t, bool sine, const std::vector<Scaled>& frequencies, const std::vector<int>& at) {
  const int n = int(at.size());
  const bool halve = n % 2 == 0;
  std::vector<Scaled> halved;
  for (const Scaled& f : frequencies) {
    if (halve && f.scaled % 2 == 0) {
      halved.push_back({f.scaled / 2, f.u});
      continue;
    }
    // Symmetric about the middle, or antisymmetric; that part waits at the mirrored places.
    const bool symmetric = (f.scaled % 2 == 0) != sine;
    for (int i = 0; i < (symmetric ? (n + 1) / 2 : n / 2); ++i) {
      const long angle = long(f.scaled) * (2 * i + 1);
      t.entries.push_back({f.u, at[size_t(symmetric ? i : n - 1 - i)], f.u == 0 ? 1 : 2 * (sine ? sine_pi(angle, 2L * n) : cosine_pi(angle, 2L * n))});
    }
  }
  if (halve) {
    std::vector<int> half;
    for (int i = 0; i < n / 2; ++i) half.push_back(at[size_t(sine ? n - 1 - i : i)]);
    half_circle(t, sine, halved, half);
  }
  for (int i = 0; i < n / 2; ++i) t.butterflies.push_back({at[size_t(i)], at[size_t(n - 1 - i)]});
}

// Cosines and sines of orders u (inputs degree + u and degree - u) at 2 pi j / n.
inline void full_circle(FastTransform& t, int degree, const std::vector<Scaled>& orders, const std::vector<int>& at) {
  const int n = int(at.size()), k = n / 2;
  const bool halve = n % 2 == 0;
  std::vector<Scaled> halved;
  for (const Scaled& f : orders) {
    if (halve && f.scaled % 2 == 0) {
      halved.push_back({f.scaled / 2, f.u});
      continue;
    }
    // Odd orders change their sign at j + n / 2, so that their cosines are odd about n / 4 and their sines even.
    for (int j = 0; halve ? 2 * j < k || j == 0 : 2 * j < n; ++j)
      t.entries.push_back({degree + f.u, at[size_t(halve ? (j ? n - j : k) : j)], f.u == 0 ? 1 : 2 * cosine_pi(2L * f.scaled * j, n)});
    for (int j = 1; halve ? 2 * j <= k : 2 * j < n; ++j)
      t.entries.push_back({degree - f.u, at[size_t(halve ? k + j : n - j)], 2 * sine_pi(2L * f.scaled * j, n)});
  }
  if (!halve) {
    for (int j = 1; 2 * j < n; ++j) t.butterflies.push_back({at[size_t(j)], at[size_t(n - j)]});
    return;
  }
  full_circle(t, degree, halved, {at.begin(), at.begin() + k});
  for (int j = 1; 2 * j < k; ++j) t.butterflies.push_back({at[size_t(k + j)], at[size_t(n - j)]});
  for (int j = 0; j < k; ++j) t.butterflies.push_back({at[size_t(j)], at[size_t(k + j)]});
}
inline std::vector<int> places(int n) {
  std::vector<int> at;
  for (int i = 0; i < n; ++i) at.push_back(i);
  return at;
}

}  // namespace fourier_detail

// Coefficients u of a cosine or a sine series to its values at (i + 1/2) pi / points.
inline FastTransform half_circle_transform(bool sine, const std::vector<int>& frequencies, int points) {
  FastTransform t;
  t.points = points;
  std::vector<fourier_detail::Scaled> scaled;
  for (int u : frequencies) scaled.push_back({u, u});
  fourier_detail::half_circle(t, sine, scaled, fourier_detail::places(points));
  return t;
}
// Coefficients degree + m (cosines) and degree - m (sines) to values at 2 pi j / points.
inline FastTransform full_circle_transform(int degree, int points) {
  FastTransform t;
  t.points = points;
  std::vector<fourier_detail::Scaled> scaled;
  for (int m = 0; m <= degree; ++m) scaled.push_back({m, m});
  fourier_detail::full_circle(t, degree, scaled, fourier_detail::places(points));
  return t;
}

}  // namespace equitensor
