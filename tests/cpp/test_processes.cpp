// What happens to a process as a whole: fork, exit, and the end of its memory or threads. Each test runs in a
// child process. Not with sanitizers: ThreadSanitizer has no threads after a fork, AddressSanitizer no limit
// on address space.

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/blas.h"
#include "core/thread_pool.h"

#if defined(__has_feature)
#define HAS_FEATURE(feature) __has_feature(feature)
#else
#define HAS_FEATURE(feature) 0
#endif
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__) && !HAS_FEATURE(thread_sanitizer) && \
    !HAS_FEATURE(address_sanitizer)

namespace blasformer {

namespace {

constexpr unsigned kTimeLimit = 30;  // seconds
constexpr double kLargeWork = 1e9;

template <class Function>
bool succeeds_in_child(Function function) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(kTimeLimit);
    try {
      _exit(function() ? 0 : 1);
    } catch (...) {
      _exit(2);
    }
  }
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::size_t number_in_status(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(name + ":", 0) == 0) return std::stoul(line.substr(name.size() + 1));
  }
  return 0;
}

void limit_address_space_to_what_is_used_and(std::size_t mebibytes) {
  const rlim_t bytes = (number_in_status("VmSize") << 10) + (mebibytes << 20);
  const rlimit limit{bytes, bytes};
  setrlimit(RLIMIT_AS, &limit);
}

bool product_is_right() {
  constexpr Index n = 130;
  const std::vector<float> ones(n * n, 1.0f);
  std::vector<float> c(n * n);
  blas::gemm(blas::Transpose::no, blas::Transpose::no, n, n, n, 1.0f, ones.data(), n, ones.data(), n, 0.0f,
             c.data(), n);
  return c == std::vector<float>(n * n, static_cast<float>(n));
}

Index sum_of_tasks(int threads) {
  std::atomic<Index> sum = 0;
  parallel_for(100, kLargeWork, [&](Index task, int) { sum += task; }, threads);
  return sum;
}

}  // namespace

TEST(a_forked_child_computes_with_threads_of_its_own) {
  CHECK(sum_of_tasks(3) == 4950);
  CHECK(product_is_right());
  CHECK(succeeds_in_child([] { return sum_of_tasks(3) == 4950 && product_is_right(); }));
  CHECK(sum_of_tasks(3) == 4950);
}

TEST(a_child_forked_while_another_thread_computes_does_not_hang) {
  std::atomic<bool> stop = false;
  std::thread busy([&] {
    while (!stop) {
      sum_of_tasks(2);
      product_is_right();
    }
  });
  bool ok = true;
  for (int i = 0; i < 50; ++i) {
    ok = ok && succeeds_in_child([] { return sum_of_tasks(3) == 4950 && product_is_right(); });
  }
  stop = true;
  busy.join();
  CHECK(ok);
}

TEST(a_process_that_may_not_create_threads_computes_without_them) {
  CHECK(succeeds_in_child([] {
    const rlimit limit{1, 1};
    setrlimit(RLIMIT_NPROC, &limit);
    if (setuid(65534) != 0) return true;  // the limit does not hold for root
    return sum_of_tasks(4) == 4950 && sum_of_tasks(4) == 4950 && number_in_status("Threads") == 1;
  }));
}

TEST(a_product_without_memory_for_its_buffers_throws_and_the_process_goes_on) {
  CHECK(succeeds_in_child([] {
    blas::config();
    limit_address_space_to_what_is_used_and(20);
    try {
      product_is_right();
      return false;
    } catch (const std::bad_alloc&) {
      return sum_of_tasks(1) == 4950;
    }
  }));
}

TEST(a_product_with_memory_for_its_buffers_is_computed_under_a_limit) {
  CHECK(succeeds_in_child([] {
    limit_address_space_to_what_is_used_and(200);
    return product_is_right();
  }));
}

TEST(exit_while_threads_multiply_neither_crashes_nor_hangs) {
  for (int milliseconds = 1; milliseconds <= 30; ++milliseconds) {
    CHECK(succeeds_in_child([milliseconds] {
      for (int i = 0; i < 3; ++i) {
        std::thread([] {
          for (;;) parallel_for(8, kLargeWork, [](Index, int) { product_is_right(); }, 3);
        }).detach();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
      std::exit(0);
      return false;
    }));
  }
}

}  // namespace blasformer

#endif
