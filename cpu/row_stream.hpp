// Results that are written a row after the other.
#pragma once
#include "cpu/channels.hpp"
#include <cstdint>

namespace equitensor {
inline namespace EQUITENSOR_VARIANT {

// Writes the rows of a result from begin to end. Streamed, every vector is written once and whole: what does not fill one waits for what follows.
// Here and elsewhere, what was just stored is loaded as it was stored, aligned alike and as long: any other load waits until the store has left for the cache,
// behind all streamed ones before it, so that computing and writing take turns (MACE large: 3.0 instead of 2.3 us).
template <class T>
class RowStream {
 public:
  RowStream() = default;
  RowStream(T* to, bool streams, bool accumulates) : to_(to), streams_(to && streams), accumulates_(accumulates) {
    if (!streams_) return;
    foreign_ = waiting_ = int(reinterpret_cast<uintptr_t>(to) % sizeof(Vector<T>) / sizeof(T));
    to_ -= waiting_;
  }
  bool streams() const { return streams_; }
  // `from` is aligned.
  void append(const T* from, int n) {
    if (!streams_) {
      for_each_vector<T>(n, [&](int c, auto part) EQUITENSOR_LAMBDA {
        part.store(to_ + c, accumulates_ ? part.load(to_ + c) + part.load(from + c) : part.load(from + c));
      });
      to_ += n;
      return;
    }
    const int waiting = waiting_;
    Vector<T> before = before_;
    int c = 0;
    for (; c + width<T> <= n; c += width<T>) {
      const Vector<T> turned = rotate<T>(load(from + c), waiting);
      write(first_lanes<T>(waiting, before, turned));
      before = turned;
    }
    if (c < n) {
      const Vector<T> turned = rotate<T>(load(from + c), waiting), whole = first_lanes<T>(waiting, before, turned);
      waiting_ += n - c;
      before = whole;
      if (waiting_ >= width<T>) {
        write(whole);
        waiting_ -= width<T>;
        before = turned;
      }
    }
    before_ = before;
  }

  // A vector, of a streamed result.
  EQUITENSOR_INLINE void append(Vector<T> v) {
    const Vector<T> turned = rotate<T>(v, waiting_);
    write(first_lanes<T>(waiting_, before_, turned));
    before_ = turned;
  }
  // For whoever writes the next rows, of `lanes` elements, a multiple of a vector's, itself: they begin `phase` elements into a vector at `rows`.
  // A row's first elements share it with the last ones of the row before; these vectors, with the last elements in front, are `value`.
  int phase() const { return waiting_; }
  T* rows() const { return to_ + waiting_; }
  template <int n>
  EQUITENSOR_INLINE void append_wrapped(const Vector<T> (&value)[n], int lanes) {
    T* const to = to_;
    write(first_lanes<T>(waiting_, before_, value[0]));
#pragma GCC unroll 8
    for (int k = 1; k < n; ++k) stream(to + k * lanes, first_lanes<T>(waiting_, value[k - 1], value[k]));
    before_ = value[n - 1];
    to_ = to;
  }
  void appended(int n) { to_ += n; }

  // Of rows that are written side by side, of a vector at least, all but the first follow: the vector that a row shares with the one before waits for that one's end,
  // which then joins them.
  void follow() { follows_ = true; }
  void join(const RowStream& next) {
    if (streams_ && waiting_ > 0) stream(to_, first_lanes<T>(waiting_, before_, next.shared_));
  }

  void finish() {
    store_lanes(to_, before_, foreign_, waiting_);
  }

 private:
  EQUITENSOR_INLINE void write(Vector<T> whole) {
    if (foreign_ > 0) {  // the vector's beginning is somebody else's
      if (follows_)
        shared_ = whole;
      else
        store_lanes(to_, whole, foreign_, width<T>);
      foreign_ = 0;
    } else {
      stream(to_, whole);
    }
    to_ += width<T>;
  }

  T* to_ = nullptr;
  bool streams_ = false, accumulates_ = false, follows_ = false;
  int foreign_ = 0, waiting_ = 0;
  Vector<T> before_{};  // its first `waiting_` lanes
  Vector<T> shared_{};
};

}  // namespace EQUITENSOR_VARIANT
}  // namespace equitensor
