#include "fiber.h"

#include <ucontext.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace ltat::emulated {
namespace {

constexpr size_t kStackSize = 128 * 1024;
Fiber* starting = nullptr;

// In a function of its own: gcc asks that of the pair.
[[noreturn]] __attribute__((noinline, no_sanitize_address)) void jump(void** point) {
  __builtin_longjmp(point, 1);
}

}  // namespace

Fiber::Fiber(std::function<void()> body)
    : body_(std::move(body)), memory_(new char[kStackSize]), own_{memory_.get(), kStackSize} {}

// setcontext makes the stack. It also makes system calls, and longjmp of the library does under AddressSanitizer, so that
// the built-in pair does all later switches; the attribute keeps the compiler from adding to it.
__attribute__((no_sanitize_address)) void Fiber::resume() {
  void* state = nullptr;
  before_switch(&state, own_);
  if (__builtin_setjmp(outside_) == 0) {
    if (started_) jump(inside_);
    started_ = true;
    starting = this;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = memory_.get();
    context.uc_stack.ss_size = kStackSize;
    context.uc_link = nullptr;
    makecontext(&context, &Fiber::enter, 0);
    setcontext(&context);
  }
  after_switch(state, nullptr);
}

void Fiber::enter() {
  Fiber* self = starting;
  after_switch(nullptr, &self->resumer_);
  self->body_();
}

__attribute__((no_sanitize_address)) void Fiber::suspend() {
  void* state = nullptr;
  before_switch(&state, resumer_);
  if (__builtin_setjmp(inside_) == 0) jump(outside_);
  after_switch(state, &resumer_);
}

// AddressSanitizer has to know which stack is in use.
#ifdef __SANITIZE_ADDRESS__
void Fiber::before_switch(void** state, const Stack& to) {
  __sanitizer_start_switch_fiber(state, to.bottom, to.size);
}
void Fiber::after_switch(void* state, Stack* from) {
  Stack left;
  __sanitizer_finish_switch_fiber(state, &left.bottom, &left.size);
  if (from) *from = left;
}
#else
void Fiber::before_switch(void**, const Stack&) {}
void Fiber::after_switch(void*, Stack*) {}
#endif

}  // namespace ltat::emulated
