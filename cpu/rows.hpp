// Rows of the caller's arrays in and out of the lanes: a tile is `width` items, one a lane, held as [component][lane].
#pragma once
#include "cpu/plan.hpp"
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
  long next;   // the first item of the tile that takes this one's place in the next group
};

// Rows of up to four lines are asked for ahead: the lanes' strides hide the order of their lines from the hardware (GTP at L = 2,
// 36-byte rows: 25 against 19 ns an item). Longer rows, asked for in one go, evict what is in use.
template <class T>
EQUITENSOR_INLINE void prefetch_rows(const T* first, long stride) {
  if (stride > 4 * line<T>) return;
  for (long i = 0; i < stride * width<T>; i += line<T>) __builtin_prefetch(first + i, 0, 2);
}

// Lines that the next tiles read, a few at a time, spread over the computation of the tiles at hand: asked for at once they fill the processor's miss buffers and
// hold up the loads of these.
template <class T>
class SpreadPrefetch {
 public:
  // The rows that prefetch_rows asks for.
  SpreadPrefetch(const T* rows, long stride) : SpreadPrefetch(rows, stride > 4 * line<T> ? 0 : stride * width<T>, 0, 1) {}
  // `runs` of n elements, `pitch` apart.
  SpreadPrefetch(const T* first, long n, long pitch, int runs) : at_(first), end_(first + n), n_(n), pitch_(pitch), runs_(n > 0 ? runs : 0) {}
  template <int lines>
  EQUITENSOR_INLINE void some() {
    if (runs_ == 0) return;
#pragma GCC unroll 8
    for (int i = 0; i < lines; ++i) __builtin_prefetch(at_ + i * line<T>, 0, 2);
    at_ += lines * line<T>;
    if (at_ >= end_) --runs_, end_ += pitch_, at_ = end_ - n_;
  }

 private:
  const T *at_, *end_;
  long n_, pitch_;
  int runs_;
};

// n components of every row into out[component].
template <class T, bool prefetch = true>
inline void load_rows(const T* base, long stride, int n, const Tile& tile, Vector<T>* out) {
  constexpr int w = width<T>;
  const T* first = base + tile.first * stride;
  const long pitch = tile.step * stride;
  if (prefetch) prefetch_rows(base + tile.ahead * stride, stride);
  if (tile.count < w) {  // the batch's last tile
    for (int c = 0; c < n; ++c) {
      T lanes[w];
      for (int lane = 0; lane < w; ++lane) lanes[lane] = first[minimum(lane, tile.count - 1) * pitch + c];
      out[c] = load(lanes);
    }
    return;
  }
  if (n < piece<T>) return load_transposed(first, pitch, n, out);
  int c = 0;
  for (; c + piece<T> <= n; c += piece<T>) load_transposed(first + c, pitch, piece<T>, out + c);
  // The last piece overlaps the one before: no masks, nothing read past a row.
  if (c < n) load_transposed(first + n - piece<T>, pitch, piece<T>, out + n - piece<T>);
}

// Components [begin, end) of the tile to the rows, or added to them, with ordinary stores.
template <class T>
inline void store_rows(T* base, long stride, long begin, long end, const Tile& tile, const Vector<T>* in, bool accumulate = false) {
  constexpr int w = width<T>;
  for (long c = begin; c < end; c += w) {
    const int n = minimum(w, int(end - c));
    Vector<T> block[w];
    for (int i = 0; i < w; ++i) block[i] = in[c + minimum(i, n - 1)];
    transpose<T>(block);
    for (int lane = 0; lane < w; ++lane) {
      if (lane >= tile.count) break;
      T* to = base + (tile.first + lane * tile.step) * stride + c;
      const Vector<T> value = accumulate ? load_partial(to, n) + block[lane] : block[lane];
      if (n == w)
        store(to, value);
      else
        store_partial(to, value, n);
    }
  }
}

// Writes the rows of a result. In a streaming pass (tile.step > 1) the lanes of a tile are items `line` apart, whose rows all start at the same
// place within a cache line; consecutive tiles are consecutive items, and the components that do not fill a line wait for
// the next tile. So every line is written once, whole, without a staging copy (which cost a third of a CGTP at L = 4).
template <class T>
class RowWriter {
 public:
  // result: of the call, which need not want it. buffer: buffer_vectors(n, slots) vectors. slots: tiles that are computed before they
  // are written. The single row of a result that is summed over the items is written by finish().
  RowWriter(const Operands<T>& call, int result, int n, Vector<T>* buffer, int slots = 1)
      : base_(call.terms.writes[result] ? call.out[result] : nullptr), n_(n), slots_(slots), accumulate_(call.accumulate), buffer_(buffer),
        total_(call.sum[result] ? buffer + slots * slot_vectors() : nullptr) {
    for (int c = 0; total_ && c < n; ++c) total_[c] = Vector<T>{};
  }

  static long buffer_vectors(int n, int slots = 1) { return slots * (line<T> + long(n)) + n; }
  // From one tile's components to the next one's.
  long slot_vectors() const { return line<T> + n_; }
  // Where a tile's components go.
  Vector<T>* tile(int slot = 0) { return buffer_ + slot * slot_vectors() + line<T>; }

  void write(const Tile& tile, bool first_of_pass, bool last_of_pass, int slot = 0) {
    if (!base_) return;
    components_ = this->tile(slot);
    if (total_) return add(tile);
    if (tile.step == 1) return store_rows(base_, n_, 0, n_, tile, components_, accumulate_);
    T* row = base_ + tile.first * n_;
    const int phase = int(reinterpret_cast<uintptr_t>(row) / sizeof(T) % line<T>);
    if (first_of_pass) owns_line_ = phase == 0;
    int c = -phase;
    if (!owns_line_) {  // the line's beginning belongs to rows of another pass
      const int head = minimum(int(n_), line<T> - phase);
      store_rows(base_, n_, 0, head, tile, components_);
      c = head;
      if (head < line<T> - phase) return;
      owns_line_ = true;
    }
    const long pitch = tile.step * n_;
    if (pitch / line<T> % 2 == 0)
      for (; c + 2 * line<T> <= n_; c += 2 * line<T>) stream_lines<2>(row + c, pitch, components_ + c);
    for (; c + line<T> <= n_; c += line<T>) stream_lines<1>(row + c, pitch, components_ + c);
    if (last_of_pass) {
      // Carried components belong to the rows before this one.
      if (c < 0) {
        for (int i = c; i < 0; ++i) scatter(row + i, tile, components_[i]);
        c = 0;
      }
      store_rows(base_, n_, c, n_, tile, components_);
      return;
    }
    const int carried = int(n_) - c;
    Vector<T>* next = this->tile((slot + 1) % slots_);
    for (int i = 0; i < carried; ++i) next[i - carried] = components_[c + i];
  }

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
  // Lines of every lane, one behind the other: lanes an even number of lines apart would have only even ones written, or only odd ones, which takes 52 instead of 40 ns
  // for 16 lines.
  template <int lines>
  EQUITENSOR_INLINE void stream_lines(T* to, long pitch, const Vector<T>* in) {
    constexpr int w = width<T>, vectors = lines * line<T> / w, lanes = minimum(w, piece<T>);
    for (int lane = 0; lane < w; lane += lanes) {
      Vector<T> part[vectors][piece<T>];
      for (int v = 0; v < vectors; ++v)
        load_transposed(reinterpret_cast<const T*>(in + v * w) + lane, w, lanes, part[v]);
      for (int i = 0; i < lanes; ++i)
        for (int v = 0; v < vectors; ++v) stream(to + (lane + i) * pitch + v * w, part[v][i]);
    }
  }
  void scatter(T* to, const Tile& tile, Vector<T> v) {
    T lanes[width<T>];
    store(lanes, v);
    for (int lane = 0; lane < width<T>; ++lane) to[lane * tile.step * n_] = lanes[lane];
  }

  T* base_;
  long n_;
  int slots_;
  bool accumulate_, owns_line_ = false;
  Vector<T>*buffer_, *total_;
  Vector<T>* components_ = nullptr;  // of the tile at hand
};

// Calls body(tiles, count, first_of_pass, last_of_pass) for items [begin, end), up to `group` tiles at a time: streaming passes of
// `line` tiles as long as whole ones fit.
template <class T>
inline constexpr int pass_items = width<T> * line<T>;
template <class T, int group, class Body>
EQUITENSOR_INLINE void for_each_tiles(long begin, long end, bool stream, Body&& body) {
  constexpr int w = width<T>;
  for (; stream && begin + pass_items<T> <= end; begin += pass_items<T>)
    for (int t = 0; t < line<T>; t += group) {
      Tile tiles[group];
      for (int g = 0; g < group; ++g) tiles[g] = {begin + t + g, line<T>, w, begin + pass_items<T> + (t + g) * w, t + group < line<T> ? begin + t + group + g : begin + pass_items<T> + g};
      body(tiles, group, t == 0, t + group == line<T>);
    }
  while (begin < end) {
    Tile tiles[group];
    int count = 0;
    for (; count < group && begin < end; ++count, begin += w)
      tiles[count] = {begin, 1, int(begin + w <= end ? w : end - begin), begin + w, begin + group * w};
    body(tiles, count, true, true);
  }
}
template <class T, class Body>
EQUITENSOR_INLINE void for_each_tile(long begin, long end, bool stream, Body&& body) {
  for_each_tiles<T, 1>(begin, end, stream, [&](const Tile* tiles, int, bool first, bool last) { body(*tiles, first, last); });
}

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
