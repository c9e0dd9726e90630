// Calls about whole models that move no tensors.
#include "server/call.hpp"

namespace cpp_store::server {
namespace {

std::string decode_model(Call& call) {
    wire::Reader in = call.body();
    std::string model = in.id();
    in.end();
    return model;
}

}  // namespace

void lookup(Call& call) {
    wire::Writer out;
    const std::string model = decode_model(call);
    wire::encode(out, call.store().lookup(model));
    call.reply(std::move(out));
}

void contains(Call& call) {
    wire::Writer out;
    const std::string model = decode_model(call);
    out.u8(call.store().contains(model) ? 1 : 0);
    call.reply(std::move(out));
}

void list(Call& call) {
    wire::Reader in = call.body();
    const bool all = in.u8() == 0;
    const std::string ns = in.id();
    in.end();
    wire::Writer out;
    out.strings(call.store().list(all ? nullptr : &ns));
    call.reply(std::move(out));
}

void retire(Call& call) {
    wire::Writer out;
    const std::string model = decode_model(call);
    replication::Replica* const replica = call.replica();
    const ForeignReferences foreign = replica ? replica->retire(model) : call.store().retire(model);
    call.note_change();
    wire::encode(out, foreign);
    call.reply(std::move(out));
}

// Whether models may still use what they refer to; of several replicas, by their owners' names.
void state(Call& call) {
    using replication::Presence;
    wire::Reader in = call.body();
    const std::vector<std::string> names = in.strings();
    in.end();
    wire::Writer out;
    out.count(names.size());
    for (const std::string& name : names) {
        const replication::Replica* const replica = call.replica();
        const bool is_alive = !replica && call.store().is_alive(name);
        const Presence state = replica    ? replica->state(name)
                               : is_alive ? Presence::in_use
                                          : Presence::unknown;
        out.u8(static_cast<std::uint8_t>(state));
    }
    call.reply(std::move(out));
}

}  // namespace cpp_store::server
