#include <sched.h>

#include <filesystem>
#include <fstream>

#include "check.h"
#include "core/available_cores.h"

namespace blasformer {

namespace {

namespace fs = std::filesystem;

// A made-up /proc/self/cgroup and a made-up /sys/fs/cgroup.
class FakeGroups {
 public:
  FakeGroups() {
    std::string pattern = (fs::temp_directory_path() / "blasformer_cgroup_XXXXXX").string();
    folder_ = mkdtemp(pattern.data());
  }
  ~FakeGroups() { fs::remove_all(folder_); }
  FakeGroups(const FakeGroups&) = delete;
  FakeGroups& operator=(const FakeGroups&) = delete;

  void write(const fs::path& file, const std::string& text) const {
    fs::create_directories((folder_ / file).parent_path());
    std::ofstream(folder_ / file) << text;
  }
  int quota() const { return cgroup_quota((folder_ / "proc").string(), (folder_ / "sys").string()); }

 private:
  fs::path folder_;
};

}  // namespace

TEST(a_version_2_quota_is_rounded_up_to_whole_cores) {
  const FakeGroups groups;
  groups.write("proc", "0::/a/b\n");
  for (const auto& [text, cores] : {std::pair("150000 100000\n", 2),
                                    {"50000 100000\n", 1},
                                    {"100000 100000\n", 1},
                                    {"1000 100000\n", 1},
                                    {"max 100000\n", 0},
                                    {"350000 50000\n", 7}}) {
    groups.write("sys/a/b/cpu.max", text);
    CHECK(groups.quota() == cores);
  }
}

TEST(the_strictest_group_on_the_way_to_the_root_counts) {
  const FakeGroups groups;
  groups.write("proc", "0::/a/b\n");
  groups.write("sys/a/b/cpu.max", "800000 100000\n");
  groups.write("sys/a/cpu.max", "300000 100000\n");
  CHECK(groups.quota() == 3);
  groups.write("sys/cpu.max", "200000 100000\n");
  CHECK(groups.quota() == 2);
}

TEST(a_version_1_quota_is_read_where_the_cpu_controller_is_mounted) {
  for (const char* mount : {"cpu,cpuacct", "cpu"}) {
    const FakeGroups groups;
    groups.write("proc", "3:cpuset:/x\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/x\n");
    const std::string folder = std::string("sys/") + mount + "/docker/1f/";
    groups.write(folder + "cpu.cfs_quota_us", "250000\n");
    groups.write(folder + "cpu.cfs_period_us", "100000\n");
    CHECK(groups.quota() == 3);
    groups.write(folder + "cpu.cfs_quota_us", "-1\n");
    CHECK(groups.quota() == 0);
  }
}

TEST(in_a_container_whose_own_path_is_hidden_the_mounted_root_counts) {
  const FakeGroups groups;
  groups.write("proc", "0::/the/path/on/the/host\n");
  groups.write("sys/cpu.max", "400000 100000\n");
  CHECK(groups.quota() == 4);
}

TEST(missing_and_damaged_files_are_no_limit) {
  const FakeGroups groups;
  CHECK(groups.quota() == 0);
  groups.write("proc", "\nnonsense\n0:\n0::/a\n");
  CHECK(groups.quota() == 0);
  for (const char* text : {"", "max", "a b", "100000", "100000 0", "-1 100000"}) {
    groups.write("sys/a/cpu.max", text);
    CHECK(groups.quota() == 0);
  }
}

TEST(available_cores_follow_the_affinity_mask) {
  cpu_set_t before;
  CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
  cpu_set_t one;
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &before) && CPU_COUNT(&one) == 0) CPU_SET(cpu, &one);
  }
  CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
  const int cores = available_cores();
  sched_setaffinity(0, sizeof before, &before);
  CHECK(cores == 1);
}

}  // namespace blasformer
