// From tensors and attributes to the general form of a Problem. Layer: torch.
// See Note [The general form] and Note [Index maps].
#pragma once

#include "torch/operators.h"

namespace actreg {

// The memory that the pointers of a Problem in general form point to.
struct General {
  Rows rows;
  IndexMap position_at;
  Tensor weight;
};

// Sets what `attributes` and row_weight say about channels, weights and positions. `general` must
// live as long as the problem. Throws if they do not fit the sizes.
void set_general(Problem& problem, General& general, at::IntArrayRef sizes, at::Device device,
                 const OptionalTensor& row_weight, const Attributes& attributes);
// Throws if the attributes do not fit a tensor of so many dimensions. Looks at no size.
void check_general(const Attributes& attributes, const OptionalTensor& row_weight, int64_t dims);

// Where the elements of x are, counted in that order. Returns false if x is not a few runs of
// elements that are neighbours in memory: then x has to be copied.
bool address(const Tensor& x, at::IntArrayRef order, IndexMap& map);

// The coefficients of backward for each channel of rows: c1, then c2_twice, as one tensor of the
// type of the sums. They begin to repeat if rows.inner is 1: see Rows.
Tensor coefficients_of(const Problem& problem, const Rows& rows, const Tensor& dpenalty);

}  // namespace actreg
