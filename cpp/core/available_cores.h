#pragma once

#include <string>

namespace blasformer {

// How many cores this process may use: the CPUs of its affinity mask, or the quota of its control groups
// (version 1 and 2, rounded up) if that is less. At least 1.
int available_cores();

// The least quota, in cores, of the control groups in the /proc/self/cgroup given and of those above them; 0
// if there is none. cgroup_root is where the groups are mounted.
int cgroup_quota(const std::string& proc_self_cgroup, const std::string& cgroup_root);

}  // namespace blasformer
