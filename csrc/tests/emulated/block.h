// One block of threads, with what its threads wait for.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "fiber.h"
#include "order.h"

namespace ltat::emulated {

class Block {
 public:
  void begin(const uint3& index, int size, const std::function<void()>& kernel);
  // Runs until all threads have ended, or, if `hold`, one has come to an atomic. Throws std::runtime_error
  // for a wait without end and for a wrong call; the block cannot be used again then.
  void run(Order& order, bool hold);
  bool has_ended() const { return ended_ == static_cast<int>(states_.size()); }

  // Called by the thread that runs.
  void wait_for_block(const Place& place);
  uint64_t exchange(unsigned mask, uint64_t value, int source, const Place& place);
  void after_atomic();

 private:
  enum State : char { kReady, kAtBarrier, kInWarp, kEnded };

  struct Thread {
    std::unique_ptr<Fiber> fiber;
    Place place;  // where it waits
    unsigned mask = 0;
    uint64_t value = 0, result = 0;
    int source = 0;
  };

  struct Warp {
    int first = 0;                    // thread
    unsigned waiting = 0, ended = 0;  // sets of lanes
  };

  void thread_body();
  void end_thread();
  void release_barrier();
  void meet_if_all_have_come(Warp& warp, int thread);
  uint64_t result_of(int thread, const Warp& warp, unsigned expected);
  void suspend() { threads_[running_].fiber->suspend(); }
  [[noreturn]] void fail(const std::string& problem);
  std::string name_of(int thread) const;
  std::string wait_without_end() const;

  uint3 index_{};
  const std::function<void()>* kernel_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  std::string states_;  // a State for each thread
  int running_ = 0, ended_ = 0, at_barrier_ = 0;
  bool hold_ = false, held_ = false;
  std::string fault_;
};

}  // namespace ltat::emulated
