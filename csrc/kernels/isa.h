// The choice among the instruction sets that the CPU kernels are compiled for. Each *_cpu.cpp is compiled
// once per instruction set, into the namespace LTAT_ISA; the entry point of the op calls the one that
// LTAT_BEST names.
#pragma once

// LTAT_DECLARE_PER_ISA(name, parameters) declares `void name(parameters)` in the namespace of each
// instruction set.
#ifdef LTAT_X86_LEVELS
#define LTAT_DECLARE_PER_ISA(name, ...) \
  namespace ltat::baseline {            \
  void name(__VA_ARGS__);               \
  }                                     \
  namespace ltat::x86_64_v3 {           \
  void name(__VA_ARGS__);               \
  }                                     \
  namespace ltat::x86_64_v4 {           \
  void name(__VA_ARGS__);               \
  }
#define LTAT_BEST(name) ltat::best_of(ltat::baseline::name, ltat::x86_64_v3::name, ltat::x86_64_v4::name)
#else
#define LTAT_DECLARE_PER_ISA(name, ...) \
  namespace ltat::baseline {            \
  void name(__VA_ARGS__);               \
  }
#define LTAT_BEST(name) ltat::baseline::name
#endif

namespace ltat {

enum class Isa { kBaseline, kX86V3, kX86V4 };

// The best instruction set of this processor, chosen once. The environment variable LTAT_ISA (baseline,
// x86-64-v3, x86-64-v4) can only lower the choice.
Isa cpu_isa();

// Its name, as LTAT_ISA spells it.
const char* name_of(Isa isa);

template <class Kernel>
Kernel* best_of(Kernel* baseline, Kernel* v3, Kernel* v4) {
  const Isa isa = cpu_isa();
  return isa == Isa::kX86V4 ? v4 : isa == Isa::kX86V3 ? v3 : baseline;
}

}  // namespace ltat
