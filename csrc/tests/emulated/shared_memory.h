// The shared memory of the block that runs now. The word __shared__ makes a variable thread_local, which
// gathers all of them in one piece, the thread-local memory of this library: it can be filled with garbage
// before a block begins, and exchanged for that of another block. Nothing else here may be thread_local.
#pragma once

#include <cstddef>
#include <vector>

namespace ltat::emulated {

class SharedMemory {
 public:
  SharedMemory();  // finds that of the library and the thread that calls

  void spoil();  // all bits 1: NaN as a float, -1 as an integer
  std::vector<char> copy() const { return {begin_, begin_ + size_}; }
  void restore(const std::vector<char>& copy);

 private:
  char* begin_ = nullptr;
  size_t size_ = 0;
};

}  // namespace ltat::emulated
