// A function on a stack of its own, which stops in the middle and goes on later.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace ltat::emulated {

class Fiber {
 public:
  explicit Fiber(std::function<void()> body);  // must never return
  Fiber(const Fiber&) = delete;

  void resume();   // runs the body until it suspends itself
  void suspend();  // called by the body: back to the call of resume

 private:
  struct Stack {
    const void* bottom;
    size_t size;
  };

  static void enter();
  static void before_switch(void** state, const Stack& to);
  static void after_switch(void* state, Stack* from);

  std::function<void()> body_;
  std::unique_ptr<char[]> memory_;
  Stack own_, resumer_{};
  using Point = void* [5];  // of __builtin_setjmp

  Point inside_, outside_;
  bool started_ = false;
};

}  // namespace ltat::emulated
