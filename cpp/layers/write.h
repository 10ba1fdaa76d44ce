#pragma once

namespace blasformer {

// What a gradient does with the memory it is given: replaces what is there, or adds to it.
enum class Write { replace, add };

}  // namespace blasformer
