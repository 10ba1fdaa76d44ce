#include "core/available_cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

namespace blasformer {

namespace {

int affinity_count() {
  // The kernel refuses a mask that is smaller than its own, which may be larger than the fixed cpu_set_t.
  for (std::size_t cpus = CPU_SETSIZE; cpus <= (std::size_t{1} << 20); cpus *= 2) {
    std::vector<cpu_set_t> mask(cpus / CPU_SETSIZE);
    const std::size_t bytes = mask.size() * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, mask.data()) == 0) return CPU_COUNT_S(bytes, mask.data());
  }
  return static_cast<int>(std::thread::hardware_concurrency());
}

int cores_of(double quota, double period) {
  return quota > 0 && period > 0 ? std::max(1, static_cast<int>(std::ceil(std::min(quota / period, 1e6))))
                                 : 0;
}

// 0 is "no limit" in what follows.
int stricter(int a, int b) { return a == 0 ? b : b == 0 ? a : std::min(a, b); }

// cpu.max holds "<quota> <period>" in microseconds, or "max <period>".
int quota_of_group_v2(const std::string& group) {
  std::ifstream file(group + "/cpu.max");
  double quota = 0, period = 0;
  return file >> quota >> period ? cores_of(quota, period) : 0;
}

int quota_of_group_v1(const std::string& group) {
  std::ifstream quota_file(group + "/cpu.cfs_quota_us"), period_file(group + "/cpu.cfs_period_us");
  double quota = 0, period = 0;
  return quota_file >> quota && period_file >> period ? cores_of(quota, period) : 0;
}

// The least quota of a group and of all above it. In a container the path may be the host's and not exist
// here: the walk then ends at the root, where the container's own group is mounted.
template <class QuotaOfGroup>
int least_quota(const std::string& mount, std::string path, QuotaOfGroup quota_of_group) {
  int least = 0;
  for (;;) {
    least = stricter(least, quota_of_group(mount + path));
    const std::size_t slash = path.rfind('/');
    if (slash == std::string::npos) return least;
    path.resize(slash);
  }
}

bool lists_cpu(const std::string& controllers) {
  std::istringstream list(controllers);
  for (std::string name; std::getline(list, name, ',');) {
    if (name == "cpu") return true;
  }
  return false;
}

}  // namespace

int cgroup_quota(const std::string& proc_self_cgroup, const std::string& cgroup_root) {
  int least = 0;
  std::ifstream file(proc_self_cgroup);
  // A line is "<hierarchy>:<controllers>:<path>"; version 2 has hierarchy 0 and names no controllers.
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (controllers.empty()) {
      least = stricter(least, least_quota(cgroup_root, path, quota_of_group_v2));
      least = stricter(least, least_quota(cgroup_root + "/unified", path, quota_of_group_v2));
    } else if (lists_cpu(controllers)) {
      least = stricter(least, least_quota(cgroup_root + "/" + controllers, path, quota_of_group_v1));
      least = stricter(least, least_quota(cgroup_root + "/cpu", path, quota_of_group_v1));
    }
  }
  return least;
}

int available_cores() {
  return std::max(1, stricter(affinity_count(), cgroup_quota("/proc/self/cgroup", "/sys/fs/cgroup")));
}

}  // namespace blasformer
