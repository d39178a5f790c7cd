#include "../kernels/isa.h"
#include "check.h"

int main() {
  for (ltat::test::Test test : ltat::test::tests()) test();
  std::printf("digest %016llx\n", static_cast<unsigned long long>(ltat::test::digest()));
  std::printf("%zu tests on %s, %d failed checks\n", ltat::test::tests().size(),
              ltat::name_of(ltat::cpu_isa()), ltat::test::failures());
  return ltat::test::failures() != 0;
}
