// What servers that keep replicas have on disk besides models: references of models on other
// servers, layers that were adopted for them, and what must not be forgotten of ids.
#include <gmock/gmock.h>

#include <map>
#include <optional>
#include <random>
#include <set>

#include "cpp_store/check.hpp"
#include "durable/catalogue.hpp"
#include "durable/durable_store.hpp"

namespace cpp_store {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class DurableReplica : public DurableStore {
  protected:
    // Nothing is damaged, and nothing is there that nobody needs.
    void expect_clean() const {
        const CheckReport report = check_directory(root / "data", false);
        EXPECT_THAT(report.damage, IsEmpty());
        EXPECT_THAT(report.leaks, IsEmpty());
    }
};

INSTANTIATE_TEST_SUITE_P(Both, DurableReplica, testing::Values(Durability::sync, Durability::lazy),
                         [](const auto& each) {
                             return each.param == Durability::sync ? "Sync" : "Lazy";
                         });

std::vector<LayerKey> keys_of(const std::vector<std::string>& names) {
    std::vector<LayerKey> keys;
    for (const std::string& name : names) keys.push_back(layer_key(name));
    return keys;
}

// A put as servers that keep replicas make it: its layers are found by its version.
PutRequest versioned(const std::string& owner, const std::vector<std::string>& names,
                     std::uint64_t size) {
    PutRequest request = request_of(owner.substr(0, owner.find('@')), names, size);
    request.owner = owner;
    request.created_ns = std::stoull(owner.substr(owner.find('@') + 1));
    return request;
}

// The bytes of layers by their owner's name.
void put_versioned(Store& store, const std::string& owner, const std::vector<std::string>& names,
                   std::uint64_t size) {
    PendingPut pending = store.prepare(versioned(owner, names, size));
    for (std::size_t i = 0; i < names.size(); ++i) {
        pending.fill(i, pattern(size, owner, names[i]).data());
    }
    store.commit(std::move(pending));
}

void adopt(Store& store, const std::string& owner, const std::vector<std::string>& names,
           std::uint64_t size, const std::string& holder) {
    std::vector<OwnerlessLayer> layers;
    for (const std::string& name : names) {
        layers.push_back({layer_key(name), {{DType::uint8, {size}}}});
    }
    PendingPut pending = store.prepare_adoption(owner, std::move(layers));
    for (std::size_t i = 0; i < names.size(); ++i) {
        pending.fill(i, pattern(size, owner, names[i]).data());
    }
    store.adopt(std::move(pending), holder);
}

void expect_layers(Store& store, const std::string& owner, const std::vector<std::string>& names) {
    const auto found = store.fetch(owner, keys_of(names));
    for (std::size_t i = 0; i < names.size(); ++i) {
        const StoredLayer::Tensor& tensor = found[i]->tensors.at(0);
        EXPECT_EQ(found[i]->key, layer_key(names[i]));
        const Bytes expected = pattern(tensor.spec.nbytes(), owner, names[i]);
        EXPECT_EQ(std::memcmp(tensor.extent.data, expected.data(), expected.size()), 0)
            << names[i] << " of " << owner;
    }
}

TEST_P(DurableReplica, KeepsAdoptedLayersForTheirHolders) {
    for (const std::uint64_t size : {std::uint64_t{1'000}, 2 * MiB}) {
        SCOPED_TRACE(size);
        {
            Store store(options());
            adopt(store, "far@5", {"a", "b"}, size, "heir@7");
            store.acquire("far@5", keys_of({"a"}), "other@8");
            adopt(store, "far@5", {"b", "c"}, size, "third@9");  // one more layer, and one again
            EXPECT_EQ(store.stats().layers, 3U);
        }
        {
            Store store(options());
            EXPECT_THAT(store.holders(), UnorderedElementsAre("heir@7", "other@8", "third@9"));
            EXPECT_EQ(store.stats().layers, 3U);
            EXPECT_EQ(store.stats().bytes_stored, 3 * size);
            expect_layers(store, "far@5", {"a", "b", "c"});
            EXPECT_THAT(store.verify(), IsEmpty());
            EXPECT_THAT(store.list(), IsEmpty());
            store.release_holder("heir@7");
            EXPECT_EQ(store.stats().layers, 3U);
            store.release("far@5", keys_of({"a"}), "other@8");
            EXPECT_EQ(store.stats().layers, 2U);
        }
        expect_clean();
        {
            Store store(options());
            EXPECT_THAT(store.holders(), ElementsAre("third@9"));
            expect_layers(store, "far@5", {"b", "c"});
            store.release_holder("third@9");
            EXPECT_EQ(store.stats().layers, 0U);
            store.flush();
            EXPECT_EQ(files(), 0U);
        }
        expect_clean();
    }
}

TEST_P(DurableReplica, AdoptedLayersLeaveTheMemoryForOthers) {
    constexpr std::uint64_t size = 512 * 1024;
    Store store(options(4 * MiB));
    for (int i = 0; i < 16; ++i) {
        adopt(store, "far" + std::to_string(i) + "@1", {"a"}, size, "heir@2");
    }
    EXPECT_LE(store.stats().memory.used, 4 * MiB);
    for (int i = 0; i < 16; ++i) expect_layers(store, "far" + std::to_string(i) + "@1", {"a"});
}

TEST_P(DurableReplica, LayersOfOneOwnerAdoptedOneByOneComeBackAsWhatTheyWere) {
    constexpr std::uint64_t size = 512 * 1024;
    const std::vector<std::string> names{"h", "a", "g", "b", "f", "c", "e", "d", "j", "i"};
    Store store(options(4 * MiB));
    for (const std::string& name : names) adopt(store, "far@1", {name}, size, "heir@2");
    for (int round = 0; round < 2; ++round) {  // some have left the memory for others each time
        for (const std::string& name : names) expect_layers(store, "far@1", {name});
    }
}

TEST_P(DurableReplica, AModelThatComesAfterItsLayersHasThemOnce) {
    {
        Store store(options());
        adopt(store, "m@5", {"a"}, 1'000, "heir@7");
        store.flush();
        put_versioned(store, "m@5", {"a", "b"}, 1'000);
        EXPECT_EQ(store.stats().layers, 2U);
        expect_intact(store, "m");
    }
    expect_clean();
    {
        Store store(options());
        EXPECT_EQ(store.stats().layers, 2U);
        EXPECT_EQ(store.lookup("m").bytes_own, 2'000U);
        expect_intact(store, "m");
        store.retire("m");
        EXPECT_EQ(store.stats().layers, 1U);
        expect_layers(store, "m@5", {"a"});
        // The same put once more, beside what is left of the first.
        put_versioned(store, "m@5", {"a", "b"}, 1'000);
        EXPECT_EQ(store.stats().layers, 2U);
    }
    expect_clean();
    {
        Store store(options());
        expect_intact(store, "m");
        store.release_holder("heir@7");
        EXPECT_EQ(store.stats().layers, 2U);
        store.retire("m");
        EXPECT_EQ(store.stats().layers, 0U);
    }
    expect_clean();
}

// A crash between the two transactions of which the first brings a model whose layers are there,
// and the second removes these: what a restart finds is made up here.
TEST_P(DurableReplica, LayersThatAreThereTwiceAreUnited) {
    for (const bool is_first : {false, true}) {  // the adopted one
        SCOPED_TRACE(is_first);
        std::filesystem::remove_all(root / "data");
        {
            Store store(options());
            put_versioned(store, "gone@1", {"a"}, 10);  // so that there is an earlier number
            store.retire("gone");
            put_versioned(store, "m@5", {"a", "b"}, 1'000);
        }
        {
            durable::Catalogue catalogue(root / "data" / "catalogue.sqlite");
            const std::uint64_t serial = is_first ? 1 : catalogue.last_serial() + 1;
            const Bytes bytes = pattern(1'000, "m@5", "a");
            durable::ModelRecord twin;
            twin.serial = serial;
            twin.id = twin.owner = "m@5";
            twin.table = std::make_shared<LayerTable>(std::vector<LayerTable::Layer>());
            twin.retired = true;
            twin.holder = "heir@7";
            durable::LayerRecord layer{.position = 0, .segment = 0, .owner = serial, .tensors = {}};
            layer.tensors.push_back({{DType::uint8, {1'000}}, {}, 0});
            for (const auto& segment : catalogue.segments()) {
                for (const auto& each : catalogue.layers_in(segment.serial)) {
                    if (each.position == 0) layer.tensors[0].checksum = each.tensors[0].checksum;
                }
            }
            for (const auto& each : catalogue.layers_in(0)) {
                if (each.position == 0) layer.tensors[0].checksum = each.tensors[0].checksum;
            }
            layer.key = layer_key("a");
            twin.layers.push_back(layer);
            catalogue.begin();
            catalogue.put(twin);
            catalogue.put_small({serial, 0}, bytes);
            catalogue.commit();
        }
        {
            Store store(options());
            EXPECT_EQ(store.stats().layers, 2U);
            EXPECT_THAT(store.holders(), ElementsAre("heir@7"));
            expect_intact(store, "m");
            store.retire("m");
            expect_layers(store, "m@5", {"a"});
        }
        expect_clean();
        {
            Store store(options());
            EXPECT_EQ(store.stats().layers, 1U);
            expect_layers(store, "m@5", {"a"});
            store.release_holder("heir@7");
            EXPECT_EQ(store.stats().layers, 0U);
        }
        expect_clean();
    }
}

TEST_P(DurableReplica, ReferencesOutliveRepair) {
    {
        Store store(options());
        adopt(store, "far@5", {"a"}, 1'000, "heir@7");
        put_versioned(store, "m@5", {"a", "b"}, 1'000);
        store.acquire("m@5", keys_of({"b"}), "heir@7");
        store.retire("m", Note{"m", 6, true, 99});
    }
    const CheckReport report = check_directory(root / "data", true);
    EXPECT_THAT(report.damage, IsEmpty());
    EXPECT_THAT(report.leaks, IsEmpty());
    EXPECT_THAT(report.dropped, IsEmpty());
    Store store(options());
    expect_layers(store, "far@5", {"a"});
    expect_layers(store, "m@5", {"b"});
    EXPECT_EQ(store.stats().layers, 2U);
    EXPECT_EQ(store.take_notes().notes.size(), 1U);
}

TEST_P(DurableReplica, DamageOfAnAdoptedLayerIsNamedAndRepaired) {
    {
        Store store(options());
        adopt(store, "far@5", {"a"}, 2 * MiB, "heir@7");
    }
    for (const auto& entry : std::filesystem::directory_iterator(root / "data" / "segments")) {
        std::filesystem::resize_file(entry.path(), 2 * MiB);
    }
    const CheckReport report = check_directory(root / "data", true);
    EXPECT_THAT(report.damage, testing::Contains(HasSubstr("far@5")));
    const Store store(options());
    EXPECT_EQ(store.stats().layers, 0U);
    EXPECT_THAT(store.holders(), IsEmpty());
}

TEST_P(DurableReplica, RemembersRetirementsAndLaterVersions) {
    {
        Store store(options());
        put_versioned(store, "m@5", {"a"}, 10);
        put_versioned(store, "n@5", {"a"}, 10);
        store.note({"m", 8, false, 0});
        store.retire("n", Note{"n", 7, true, 123'456});
        store.note({"never seen", 9, true, 0});
        EXPECT_THAT(store.take_notes().notes, IsEmpty());
    }
    Store store(options());
    EXPECT_THAT(store.list(), ElementsAre("m"));
    std::map<std::string, Note> found;
    for (Note& note : store.take_notes().notes) found.emplace(note.model, note);
    ASSERT_EQ(found.size(), 3U);
    EXPECT_EQ(found.at("m").version, 8U);
    EXPECT_FALSE(found.at("m").retired);
    EXPECT_EQ(found.at("n").version, 7U);
    EXPECT_TRUE(found.at("n").retired);
    EXPECT_EQ(found.at("n").by, 123'456U);
    EXPECT_TRUE(found.at("never seen").retired);
    EXPECT_THAT(store.take_notes().notes, IsEmpty());
}

TEST_P(DurableReplica, ForgetsTheOldestRetirements) {
    { const Store store(options()); }
    durable::Catalogue catalogue(root / "data" / "catalogue.sqlite");
    catalogue.begin();
    for (std::uint64_t i = 0; i < 10; ++i) {
        catalogue.note({"m" + std::to_string(i), 100 - i, true, 0}, 3);
    }
    catalogue.note({"m8", 200, true, 0}, 3);       // later than m9 now
    catalogue.note({"raised", 300, false, 0}, 3);  // no retirement
    catalogue.commit();
    catalogue.begin();
    catalogue.note({"undone", 400, true, 0}, 3);
    catalogue.rollback();
    catalogue.begin();
    catalogue.note({"last", 500, true, 0}, 3);  // m7 goes
    catalogue.commit();
    const Notes notes = catalogue.notes();
    std::vector<std::string> retired;
    for (const Note& note : notes.notes) {
        if (note.retired) retired.push_back(note.model);
    }
    EXPECT_THAT(retired, ElementsAre("m9", "m8", "last"));
    EXPECT_EQ(notes.notes.size(), 4U);
    EXPECT_EQ(notes.forgotten, 100U);
}

// Histories of what such servers do, with restarts, against a plain model.
TEST_P(DurableReplica, IsWhatAModelSaysAfterEveryRestart) {
    using Layer = std::pair<std::string, std::string>;  // owner, name
    const std::vector<std::string> names{"a", "b", "c"};
    for (unsigned seed = 0; seed < 4; ++seed) {
        SCOPED_TRACE(seed);
        std::mt19937 random(seed);
        std::filesystem::remove_all(root / "data");
        std::set<std::string> visible;                // owners of visible models
        std::map<std::string, std::set<Layer>> held;  // by holder
        std::map<std::string, std::uint64_t> retired;
        std::optional<Store> store(std::in_place, options(2 * MiB));
        const auto is_here = [&](const Layer& layer) {
            if (visible.contains(layer.first)) return true;
            return std::any_of(held.begin(), held.end(),
                               [&](const auto& each) { return each.second.contains(layer); });
        };
        const auto all_layers = [&] {
            std::set<Layer> layers;
            for (const auto& owner : visible) {
                for (const std::string& name : names) layers.emplace(owner, name);
            }
            for (const auto& [holder, theirs] : held) layers.insert(theirs.begin(), theirs.end());
            return layers;
        };
        for (int step = 0; step < 150; ++step) {
            const std::string owner = "m" + std::to_string(random() % 6) + "@5";
            const std::string model = owner.substr(0, 2);
            const std::string holder = "h" + std::to_string(random() % 3) + "@1";
            const Layer layer{owner, names[random() % names.size()]};
            const std::uint64_t size = 100 * (1 + std::hash<std::string>{}(owner) % 900);
            switch (random() % 8) {
                case 0:
                case 1:
                    if (visible.contains(owner)) {
                        store->retire(model, Note{model, 5, true, 0});
                        visible.erase(owner);
                        retired[model] = 5;
                    } else {
                        put_versioned(*store, owner, names, size);
                        visible.insert(owner);
                    }
                    break;
                case 2:
                case 3:
                    adopt(*store, owner, {layer.second}, size, holder);
                    held[holder].insert(layer);
                    break;
                case 4:
                    if (!is_here(layer)) break;
                    store->acquire(owner, keys_of({layer.second}), holder);
                    held[holder].insert(layer);
                    break;
                case 5:
                    store->release(owner, keys_of({layer.second}), holder);
                    held[holder].erase(layer);
                    break;
                case 6:
                    if (random() % 3 != 0) break;
                    store->release_holder(holder);
                    held.erase(holder);
                    break;
                default:
                    if (random() % 3 != 0) break;
                    store.reset();
                    expect_clean();
                    store.emplace(options(2 * MiB));
            }
            std::erase_if(held, [](const auto& each) { return each.second.empty(); });
            ASSERT_EQ(store->stats().layers, all_layers().size()) << step;
            ASSERT_EQ(store->stats().foreign_holders, held.size()) << step;
        }
        store.reset();
        store.emplace(options(2 * MiB));
        EXPECT_EQ(store->stats().models, visible.size());
        for (const auto& [owner, name] : all_layers()) expect_layers(*store, owner, {name});
        std::map<std::string, std::uint64_t> noted;
        for (const Note& note : store->take_notes().notes) noted[note.model] = note.version;
        EXPECT_EQ(noted, retired);
        for (const std::string& owner : visible) store->retire(owner.substr(0, 2));
        for (const auto& [holder, layers] : held) store->release_holder(holder);
        EXPECT_EQ(store->stats().layers, 0U);
        store.reset();
        expect_clean();
        EXPECT_EQ(files(), 0U);
    }
}

}  // namespace
}  // namespace cpp_store
