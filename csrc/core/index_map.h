// A number for each element of a tensor: its position in the mask, its address, its channel or the
// place of its row's weight. Layer: core.
//
// Note [Index maps]
// Elements are counted in memory order: element i is i steps behind the first one, if the tensor
// is dense. An index map sends i to origin + sum over the dimensions of (index * stride). So shared
// dimensions (stride 0), shards (an origin, and the strides of the whole tensor), rows with a
// pitch, channels and broadcast row weights are one thing.
#pragma once

#include <cstdint>

#include "core/number.h"

namespace actreg {

struct IndexMap {
  static constexpr int kMaxDims = 8;
  int dims = 0;
  int64_t origin = 0;
  int64_t size[kMaxDims] = {}, stride[kMaxDims] = {};  // the outermost dimension first

  // The map of the identity is not stored: a null pointer or is_identity stands for it.
  bool is_identity() const { return origin == 0 && (dims == 0 || (dims == 1 && stride[0] == 1)); }

  ACTREG_HD int64_t at(int64_t i) const {
    int64_t value = origin;
    for (int d = dims - 1; d > 0; --d) {
      value += i % size[d] * stride[d];
      i /= size[d];
    }
    return dims > 0 ? value + i * stride[0] : value;
  }

  // Appends a dimension inside of the others. Returns false if there is no room for it.
  bool append(int64_t length, int64_t step) {
    if (length == 1) return true;
    const int last = dims - 1;
    if (dims > 0 && stride[last] == length * step) {  // one dimension in place of two
      size[last] *= length;
      stride[last] = step;
      return true;
    }
    if (dims == kMaxDims) return false;
    size[dims] = length;
    stride[dims++] = step;
    return true;
  }

  // Calls f(j, value, length, step) for each run: elements i + j, ..., i + j + length - 1 have the
  // values value, value + step, .... All runs together are the elements [i, i + count).
  template <class F>
  ACTREG_HD void for_each_run(int64_t i, int64_t count, F f) const {
    if (dims == 0) return f(int64_t{0}, origin, count, int64_t{0});
    const int64_t length = size[dims - 1], step = stride[dims - 1];
    int64_t index[kMaxDims], rest = i, value = origin;
    for (int d = dims - 1; d >= 0; --d) {
      index[d] = d > 0 ? rest % size[d] : rest;
      rest = d > 0 ? rest / size[d] : 0;
      value += index[d] * stride[d];
    }
    for (int64_t j = 0; j < count;) {
      const int64_t left = length - index[dims - 1];
      const int64_t run = left < count - j ? left : count - j;
      f(j, value, run, step);
      j += run;
      value -= index[dims - 1] * step;  // to the next run
      index[dims - 1] = 0;
      for (int d = dims - 2; d >= 0; --d) {
        value += stride[d];
        if (++index[d] < size[d] || d == 0) break;
        value -= size[d] * stride[d];
        index[d] = 0;
      }
    }
  }
};

}  // namespace actreg
