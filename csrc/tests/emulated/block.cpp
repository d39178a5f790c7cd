#include "block.h"

#include <cstring>
#include <stdexcept>

namespace ltat::emulated {
namespace {

bool is_same(const Place& a, const Place& b) {
  const bool same_file = a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0;
  return same_file && a.line() == b.line() && a.column() == b.column();
}

std::string name_of(const Place& place) {
  return std::string(place.file_name()) + ":" + std::to_string(place.line());
}

}  // namespace

void Block::begin(const uint3& index, int size, const std::function<void()>& kernel) {
  index_ = index;
  kernel_ = &kernel;
  if (static_cast<int>(threads_.size()) < size) threads_.resize(size);
  states_.assign(size, kReady);
  ended_ = at_barrier_ = 0;
  warps_.assign((size + kWarp - 1) / kWarp, Warp{});
  for (size_t warp = 0; warp < warps_.size(); ++warp) warps_[warp].first = static_cast<int>(warp) * kWarp;
  if (size % kWarp != 0) warps_.back().ended = ~0u << size % kWarp;
}

void Block::run(Order& order, bool hold) {
  hold_ = hold;
  held_ = false;
  blockIdx = index_;
  while (!has_ended() && !held_) {
    running_ = order.next(states_.data(), static_cast<int>(states_.size()), kReady);
    if (running_ < 0) throw std::runtime_error(wait_without_end());
    threadIdx = {static_cast<unsigned>(running_), 0, 0};
    Thread& thread = threads_[running_];
    if (!thread.fiber) thread.fiber = std::make_unique<Fiber>([this] { thread_body(); });
    thread.fiber->resume();
    if (!fault_.empty()) throw std::runtime_error(fault_);
  }
}

// The fibers outlive the block: making one takes a system call.
void Block::thread_body() {
  for (;;) {
    (*kernel_)();
    end_thread();
  }
}

void Block::end_thread() {
  states_[running_] = kEnded;
  ++ended_;
  Warp& warp = warps_[running_ / kWarp];
  warp.ended |= 1u << running_ % kWarp;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (warp.waiting >> lane & 1u) meet_if_all_have_come(warp, warp.first + lane);
  }
  suspend();
}

void Block::wait_for_block(const Place& place) {
  threads_[running_].place = place;
  states_[running_] = kAtBarrier;
  if (++at_barrier_ == static_cast<int>(states_.size())) release_barrier();
  suspend();
}

void Block::release_barrier() {
  for (size_t thread = 0; thread < states_.size(); ++thread) {
    if (!is_same(threads_[thread].place, threads_[0].place)) {
      fail("meets others that wait at " + emulated::name_of(threads_[0].place));
    }
  }
  states_.assign(states_.size(), kReady);
  at_barrier_ = 0;
}

uint64_t Block::exchange(unsigned mask, uint64_t value, int source, const Place& place) {
  const unsigned own = 1u << running_ % kWarp;
  if (!(mask & own)) fail("is not in its own mask at " + emulated::name_of(place));
  Thread& self = threads_[running_];
  self.place = place;
  self.mask = mask;
  self.value = value;
  self.source = source;
  states_[running_] = kInWarp;
  Warp& warp = warps_[running_ / kWarp];
  warp.waiting |= own;
  meet_if_all_have_come(warp, running_);
  suspend();
  return self.result;
}

// Lets the lanes that a thread waits for go on, once all of them have come to the same call with the same mask.
// Lanes that have ended are not waited for, but must not be read.
void Block::meet_if_all_have_come(Warp& warp, int thread) {
  const Thread& one = threads_[thread];
  const unsigned expected = one.mask & ~warp.ended;
  if (expected & ~warp.waiting) return;
  const auto come = [&](int lane) { return expected >> lane & 1u; };
  for (int lane = 0; lane < kWarp; ++lane) {
    const Thread& other = threads_[warp.first + lane];
    if (come(lane) && (other.mask != one.mask || !is_same(other.place, one.place))) return;
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (come(lane)) threads_[warp.first + lane].result = result_of(warp.first + lane, warp, expected);
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (come(lane)) states_[warp.first + lane] = kReady;
  }
  warp.waiting &= ~expected;
}

uint64_t Block::result_of(int thread, const Warp& warp, unsigned expected) {
  const int source = threads_[thread].source;
  if (source != kBallot) {
    if (expected >> source & 1u) return threads_[warp.first + source].value;
    fail("reads lane " + std::to_string(source) + ", which has ended or is not in the mask, at " +
         emulated::name_of(threads_[thread].place));
  }
  uint64_t lanes = 0;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (expected >> lane & 1u && threads_[warp.first + lane].value) lanes |= uint64_t{1} << lane;
  }
  return lanes;
}

void Block::after_atomic() {
  if (!hold_) return;
  held_ = true;
  suspend();
}

// Never returns: no exception could leave the stack of a fiber.
void Block::fail(const std::string& problem) {
  fault_ = name_of(running_) + " " + problem;
  for (;;) suspend();
}

std::string Block::name_of(int thread) const {
  return "thread " + std::to_string(thread) + " of block " + std::to_string(index_.x) + "," +
         std::to_string(index_.y);
}

std::string Block::wait_without_end() const {
  int thread = 0;
  while (states_[thread] == kEnded) ++thread;
  return name_of(thread) + " waits at " + emulated::name_of(threads_[thread].place) +
         " for threads that have ended or wait elsewhere";
}

}  // namespace ltat::emulated
