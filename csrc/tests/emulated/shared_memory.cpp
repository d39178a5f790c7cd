#include "shared_memory.h"

#include <link.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace ltat::emulated {
namespace {

thread_local volatile char anchor;

struct Found {
  char *begin = nullptr, *end = nullptr;
};

int look(dl_phdr_info* library, size_t, void* result) {
  for (int i = 0; i < library->dlpi_phnum; ++i) {
    if (library->dlpi_phdr[i].p_type != PT_TLS || !library->dlpi_tls_data) continue;
    char* begin = static_cast<char*>(library->dlpi_tls_data);
    char* end = begin + library->dlpi_phdr[i].p_memsz;
    const char* inside = const_cast<const char*>(&anchor);
    if (inside >= begin && inside < end) *static_cast<Found*>(result) = {begin, end};
  }
  return 0;
}

}  // namespace

SharedMemory::SharedMemory() {
  anchor = 0;  // the memory exists from its first use on
  Found found;
  dl_iterate_phdr(look, &found);
  if (!found.begin) throw std::runtime_error("the thread-local memory of the library was not found");
  begin_ = found.begin;
  size_ = static_cast<size_t>(found.end - found.begin);
}

void SharedMemory::spoil() { std::memset(begin_, 0xff, size_); }

void SharedMemory::restore(const std::vector<char>& copy) { std::copy(copy.begin(), copy.end(), begin_); }

}  // namespace ltat::emulated
