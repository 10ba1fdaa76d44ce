#pragma once

namespace blasformer {

// Gives blocks that allocate_memory would hand out again back to the system: after the release of many that
// will not be asked for again.
void free_kept_memory() noexcept;

}  // namespace blasformer
