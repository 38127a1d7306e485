// Rows of the caller's arrays in and out of the lanes: a tile is `width` items, one a lane, held as [component][lane].
#pragma once
#include "cpu/simd.hpp"

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

template <class T>
inline constexpr int line = 64 / int(sizeof(T));  // elements of a cache line

// Items first, first + step, ...; lanes from count on repeat the last item and are not stored.
struct Tile {
  long first, step;
  int count;
  long ahead;  // the `width` items from here on are needed soon: in the next pass, or as the next tile
};

// Rows of up to four lines are asked for ahead: the lanes' strides hide the order of their lines from the hardware (GTP at L = 2,
// 36-byte rows: 25 against 19 ns an item). Longer rows it sees by itself, and asking for them evicts what is in use.
template <class T>
EQUITENSOR_INLINE void prefetch_rows(const T* first, long stride) {
  if (stride > 4 * line<T>) return;
  for (long i = 0; i < stride * width<T>; i += line<T>) __builtin_prefetch(first + i, 0, 2);
}

// `kept` components of every lane, from rows `pitch` apart, into out[component]. Rounds of the transpose that nothing is kept of
// fall away when `kept` is a constant.
template <class T, int kept>
EQUITENSOR_INLINE void load_block(const T* first, long pitch, int n, Vector<T>* out) {
  constexpr int w = width<T>;
  Vector<T> block[w];
#pragma GCC unroll 16
  for (int lane = 0; lane < w; ++lane) {
    const T* row = first + lane * pitch;
    block[lane] = kept == w && n == w ? load(row) : load_partial(row, n);
  }
  transpose<T>(block);
#pragma GCC unroll 16
  for (int i = 0; i < kept; ++i)
    if (i < n) out[i] = block[i];
}

// n components of every row into out[component].
template <class T>
inline void load_rows(const T* base, long stride, int n, const Tile& tile, Vector<T>* out) {
  constexpr int w = width<T>;
  const T* first = base + tile.first * stride;
  const long pitch = tile.step * stride;
  prefetch_rows(base + tile.ahead * stride, stride);
  if (tile.count < w) {  // the batch's last tile
    for (int c = 0; c < n; ++c) {
      T lanes[w];
      for (int lane = 0; lane < w; ++lane) lanes[lane] = first[minimum(lane, tile.count - 1) * pitch + c];
      out[c] = load(lanes);
    }
    return;
  }
  if (n < w) {
    if (n <= w / 4)
      load_block<T, maximum(1, w / 4)>(first, pitch, n, out);
    else
      load_block<T, w>(first, pitch, n, out);
    return;
  }
  int c = 0;
  for (; c + w <= n; c += w) load_block<T, w>(first + c, pitch, w, out + c);
  // The last block overlaps the one before: no masks, nothing read past a row.
  if (c < n) load_block<T, w>(first + n - w, pitch, w, out + n - w);
}

// Components [begin, end) of the tile to the rows, with ordinary stores.
template <class T>
inline void store_rows(T* base, long stride, long begin, long end, const Tile& tile, const Vector<T>* in) {
  constexpr int w = width<T>;
  for (long c = begin; c < end; c += w) {
    const int n = minimum(w, int(end - c));
    Vector<T> block[w];
    for (int i = 0; i < w; ++i) block[i] = in[c + minimum(i, n - 1)];
    transpose<T>(block);
    for (int lane = 0; lane < w; ++lane) {
      if (lane >= tile.count) break;
      T* to = base + (tile.first + lane * tile.step) * stride + c;
      if (n == w)
        store(to, block[lane]);
      else
        store_partial(to, block[lane], n);
    }
  }
}

// Writes the rows of an output array. In a streaming pass (tile.step > 1) the lanes of a tile are items `line` apart, whose rows all
// start at the same place within a cache line; consecutive tiles are consecutive items, and the components that do not fill a line
// wait for the next tile. So every line is written once, whole, without a staging copy (which cost a third of a CGTP at L = 4).
//
// A tile's lines leave one by one while the next tile is computed: the kernel calls advance() between its steps. A core holds
// about 16 lines on their way to memory, and all its other stores queue behind them.
template <class T>
class RowWriter {
 public:
  // buffer: buffer_vectors(n) vectors. steps: how often the kernel calls advance() a tile.
  // summed: base is a single row, which gets the sum over all items.
  RowWriter(T* base, int n, Vector<T>* buffer, int steps, bool summed = false)
      : base_(base),
        n_(n),
        lines_a_step_((n / line<T> + steps) / steps),
        components_(buffer + line<T>),
        other_(components_ + n + line<T>),
        total_(summed ? other_ + n : nullptr) {
    for (int c = 0; summed && c < n; ++c) total_[c] = Vector<T>{};
  }

  static long buffer_vectors(int n) { return 2 * (line<T> + n) + n; }

  // Where the components of the tile at hand go.
  Vector<T>* tile() { return components_; }

  EQUITENSOR_INLINE void advance() {
    for (int i = 0; i < lines_a_step_ && pending_ < pending_end_; ++i) stream_pending();
  }

  void write(const Tile& tile, bool first_of_pass, bool last_of_pass) {
    if (!base_) return;
    if (total_) return add(tile);
    if (tile.step == 1) return store_rows(base_, n_, 0, n_, tile, components_);
    while (pending_ < pending_end_) stream_pending();
    T* row = base_ + tile.first * n_;
    const int n = int(n_), phase = int(reinterpret_cast<uintptr_t>(row) / sizeof(T) % line<T>);
    if (first_of_pass) owns_line_ = phase == 0;
    int begin = -phase;  // carried components lie before the tile's
    if (!owns_line_) {   // the line's beginning belongs to rows of another pass
      begin = minimum(n, line<T> - phase);
      store_rows(base_, n_, 0, begin, tile, components_);
      if (begin < line<T> - phase) return;
      owns_line_ = true;
    }
    const int end = begin + (n - begin) / line<T> * line<T>;
    pending_ = begin, pending_end_ = end;
    pending_row_ = row, pending_pitch_ = tile.step * n_, pending_components_ = components_;
    if (last_of_pass) {
      while (pending_ < pending_end_) stream_pending();
      for (int c = end; c < 0; ++c) scatter(row + c, tile, components_[c]);
      store_rows(base_, n_, maximum(end, 0), n, tile, components_);
      return;
    }
    for (int c = end; c < n; ++c) other_[c - n] = components_[c];
    std::swap(components_, other_);
  }

  // Once, after the last tile: writes the sums.
  void finish() {
    for (int c = 0; base_ && total_ && c < n_; ++c) {
      T lanes[width<T>];
      store(lanes, total_[c]);
      base_[c] = 0;
      for (T lane : lanes) base_[c] += lane;
    }
  }

 private:
  void add(const Tile& tile) {
    for (int c = 0; c < n_; ++c) {
      T lanes[width<T>] = {};
      T values[width<T>];
      store(values, components_[c]);
      for (int lane = 0; lane < tile.count; ++lane) lanes[lane] = values[lane];
      total_[c] += load(lanes);
    }
  }
  // One line of every lane.
  void stream_pending() {
    constexpr int w = width<T>, vectors = line<T> / w;
    const Vector<T>* in = pending_components_ + pending_;
    T* to = pending_row_ + pending_;
    Vector<T> block[vectors][w];
    for (int v = 0; v < vectors; ++v) {
      for (int i = 0; i < w; ++i) block[v][i] = in[v * w + i];
      transpose<T>(block[v]);
    }
    for (int lane = 0; lane < w; ++lane)
      for (int v = 0; v < vectors; ++v) stream(to + lane * pending_pitch_ + v * w, block[v][lane]);
    pending_ += line<T>;
  }
  void scatter(T* to, const Tile& tile, Vector<T> v) {
    T lanes[width<T>];
    store(lanes, v);
    for (int lane = 0; lane < width<T>; ++lane) to[lane * tile.step * n_] = lanes[lane];
  }

  T* base_;
  long n_;
  int lines_a_step_;
  bool owns_line_ = false;
  Vector<T>*components_, *other_, *total_;
  // Lines that have not left yet: components [pending_, pending_end_) of the tile before.
  int pending_ = 0, pending_end_ = 0;
  T* pending_row_ = nullptr;
  long pending_pitch_ = 0;
  const Vector<T>* pending_components_ = nullptr;
};

// Calls body(tile, first_of_pass, last_of_pass) for items [begin, end): streaming passes of `line` tiles as long as whole ones fit.
template <class T>
inline constexpr int pass_items = width<T> * line<T>;
template <class T, class Body>
EQUITENSOR_INLINE void for_each_tile(long begin, long end, bool stream, Body&& body) {
  for (; stream && begin + pass_items<T> <= end; begin += pass_items<T>)
    for (int t = 0; t < line<T>; ++t)
      body(Tile{begin + t, line<T>, width<T>, begin + pass_items<T> + t * width<T>}, t == 0, t == line<T> - 1);
  for (; begin < end; begin += width<T>)
    body(Tile{begin, 1, int(begin + width<T> <= end ? width<T> : end - begin), begin + width<T>}, true, true);
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
