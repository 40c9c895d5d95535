// Which writes of other threads a thread sees. Each block has its own shared memory. In global
// memory a block sees the write of another block only after a fence of the writer and then one of
// its own.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda_runtime.h"

namespace emulation {

// The contents of a block's memory, stored here while another block runs.
struct Memory {
  std::vector<char> shared, global, fetched;  // fetched: global at the last fence
};

void begin_launch(Span global);  // global: the memory that blocks share
Memory begin_block();            // shared memory is filled with 0xFF
void save(Memory&);
void restore(const Memory&);
void send_and_fetch(Memory&);
unsigned change_for_all(Memory&, unsigned* at, unsigned (*change)(unsigned, unsigned), unsigned);
void end_block(const Memory&);  // writes without a fence arrive when the launch ends
void end_launch();

}  // namespace emulation
