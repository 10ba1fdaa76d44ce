#pragma once

namespace blasformer::bindings {

// Lets this thread compute at the precision of the current Python context: for calls that keep the
// interpreter lock. Needs it.
void follow_context_precision();

}  // namespace blasformer::bindings
