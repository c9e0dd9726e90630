// How SQLite writes its log.
#pragma once

namespace cpp_store::durable {

// The name of a VFS like SQLite's own, but that a log's pages, and the 24 bytes before each of
// them, are gathered and written in one go, at the latest before they are synced: some tens of
// system calls fewer a commit. An error of such a write is reported by the sync.
[[nodiscard]] const char* gathering_vfs();

}  // namespace cpp_store::durable
