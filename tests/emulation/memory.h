// What the threads of a device see of each other's writes: shared memory is its block's alone, and
// what one block writes for another gets there when a fence sends it and a fence fetches it.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda_runtime.h"

namespace emulation {

// A block's own contents of the memory below, while another block runs.
struct Memory {
  std::vector<char> shared, global, fetched;  // fetched: global, as of the last fence
};

void begin_launch(Span global);  // what blocks tell each other through
Memory begin_block();            // shared memory of 0xFF
void save(Memory&);
void restore(const Memory&);
void send_and_fetch(Memory&);
unsigned change_for_all(Memory&, unsigned* at, unsigned (*change)(unsigned, unsigned), unsigned);
void end_block(const Memory&);  // what no fence has sent is seen when the launch has ended
void end_launch();

}  // namespace emulation
