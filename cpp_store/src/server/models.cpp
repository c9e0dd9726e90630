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
    wire::encode(out, call.store_to_ask(model).lookup(model));
    call.reply(std::move(out));
}

void contains(Call& call) {
    wire::Writer out;
    const std::string model = decode_model(call);
    out.u8(call.store_to_ask(model).contains(model) ? 1 : 0);
    call.reply(std::move(out));
}

void list(Call& call) {
    wire::Reader in = call.body();
    const bool all = in.u8() == 0;
    const std::string ns = in.id();
    in.end();
    wire::Writer out;
    out.strings(call.store_to_ask().list(all ? nullptr : &ns));
    call.reply(std::move(out));
}

void retire(Call& call) {
    wire::Writer out;
    const ForeignReferences foreign = call.store().retire(decode_model(call));
    call.note_change();
    wire::encode(out, foreign);
    call.reply(std::move(out));
}

void alive(Call& call) {
    wire::Reader in = call.body();
    const std::vector<std::string> models = in.strings();
    in.end();
    wire::Writer out;
    out.count(models.size());
    for (const std::string& model : models) out.u8(call.store().is_alive(model) ? 1 : 0);
    call.reply(std::move(out));
}

}  // namespace cpp_store::server
