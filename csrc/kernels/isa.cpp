#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace ltat {
namespace {

#ifdef LTAT_X86_LEVELS
bool has_v3() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c") &&
         __builtin_cpu_supports("lzcnt") && __builtin_cpu_supports("movbe");
}

bool has_v4() {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

bool is_requested(Isa isa) {
  const char* request = std::getenv("LTAT_ISA");
  return request && std::strcmp(request, name_of(isa)) == 0;
}
#endif

Isa choose() {
#ifdef LTAT_X86_LEVELS
  if (is_requested(Isa::kBaseline) || !has_v3()) return Isa::kBaseline;
  return is_requested(Isa::kX86V3) || !has_v4() ? Isa::kX86V3 : Isa::kX86V4;
#else
  return Isa::kBaseline;
#endif
}

}  // namespace

Isa cpu_isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* name_of(Isa isa) {
  switch (isa) {
    case Isa::kX86V3:
      return "x86-64-v3";
    case Isa::kX86V4:
      return "x86-64-v4";
    default:
      return "baseline";
  }
}

}  // namespace ltat
