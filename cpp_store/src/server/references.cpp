// References that models on other servers hold to layers here.
#include "server/call.hpp"

namespace cpp_store::server {
namespace {

wire::References decode(Call& call) {
    wire::Reader in = call.body();
    wire::References references = wire::decode_references(in);
    in.end();
    return references;
}

}  // namespace

void acquire(Call& call) {
    const wire::References references = decode(call);
    call.store().acquire(references.owner, references.keys, references.holder);
    call.note_change();
    // What the holder inherits: its own server cannot know.
    wire::Writer out;
    out.count(references.keys.size());
    for (const auto bytes : call.store().layer_bytes(references.owner, references.keys)) {
        out.u64(bytes);
    }
    call.reply(std::move(out));
}

void release(Call& call) {
    const wire::References references = decode(call);
    call.store().release(references.owner, references.keys, references.holder);
    call.note_change();
    call.reply();
}

void holders(Call& call) {
    wire::Reader in = call.body();
    const std::uint64_t age_ms = in.u64();
    in.end();
    wire::Writer out;
    const std::chrono::milliseconds age(std::min<std::uint64_t>(age_ms, 1u << 31));
    out.strings(call.store().holders(age));
    call.reply(std::move(out));
}

void release_holder(Call& call) {
    wire::Reader in = call.body();
    const std::string holder = in.id();
    in.end();
    call.store().release_holder(holder);
    call.note_change();
    call.reply();
}

}  // namespace cpp_store::server
