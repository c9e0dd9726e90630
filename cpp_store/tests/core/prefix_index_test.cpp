#include "cpp_store/prefix_index.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>

#include "cpp_store/error.hpp"
#include "sanitizers.hpp"

namespace cpp_store {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr double nan_score = std::numeric_limits<double>::quiet_NaN();

// --- architectures: graphs whose layers are named after all that is above them ---

struct Architecture {
    struct Op {
        int kind = 0;
        std::vector<std::uint32_t> inputs;
    };
    std::vector<Op> ops;

    // A layer's name covers its kind and the names of its inputs; its size follows from the name.
    // Equal layers are one layer.
    [[nodiscard]] LayerTable table() const {
        std::vector<LayerTable::Layer> layers;
        std::map<std::string, std::uint32_t> position;
        std::vector<std::uint32_t> layer_of_op;
        for (const Op& op : ops) {
            LayerTable::Layer layer;
            std::string text = std::to_string(op.kind);
            for (const std::uint32_t input : op.inputs) {
                layer.requires_.push_back(layer_of_op[input]);
                text += "," + layers[layer_of_op[input]].name;
            }
            const LayerKey digest = layer_key(text);
            layer.name = "L" + std::to_string(digest.high);
            layer.nbytes = std::array<std::uint64_t, 8>{0, 0, 0, 1, 1, 2, 8, 64}[digest.low % 8];
            const auto [found, is_new] =
                position.emplace(layer.name, static_cast<std::uint32_t>(layers.size()));
            if (is_new) layers.push_back(layer);
            layer_of_op.push_back(found->second);
        }
        return LayerTable(std::move(layers));
    }
};

using Random = std::mt19937_64;

std::uint32_t below(Random& random, std::size_t end) {
    return static_cast<std::uint32_t>(random() % end);
}

Architecture random_architecture(Random& random, std::size_t size, int kinds, std::size_t reach) {
    Architecture made;
    for (std::size_t i = 0; i < size; ++i) {
        Architecture::Op op{static_cast<int>(below(random, static_cast<std::size_t>(kinds))), {}};
        if (i != 0 && random() % 16 != 0) {
            const std::size_t inputs = random() % 3 == 0 ? 1 + below(random, 3) : 1;
            for (std::size_t j = 0; j < inputs; ++j) {
                const std::size_t back = 1 + below(random, std::min(i, reach));
                op.inputs.push_back(static_cast<std::uint32_t>(i - back));
            }
        }
        made.ops.push_back(op);
    }
    return made;
}

Architecture mutated(Random& random, Architecture from, int kinds) {
    Architecture::Op& op = from.ops[below(random, from.ops.size())];
    const auto at = static_cast<std::size_t>(&op - from.ops.data());
    switch (below(random, 4)) {
        case 0:
            if (at != 0) op.inputs.push_back(below(random, at));
            break;
        case 1:
            if (!op.inputs.empty()) op.inputs.pop_back();
            break;
        case 2:
            from.ops.resize(std::max<std::size_t>(at, 1));  // ends here
            break;
        default:
            op.kind = static_cast<int>(below(random, static_cast<std::size_t>(kinds)));
    }
    return from;
}

// --- the oracle: intersects the query's layers with every model's ---

class Scan {
  public:
    void add(const std::string& model, const std::string& ns, const LayerTable& table, double score,
             std::uint64_t sequence) {
        Stored& stored = models_[model];
        stored = {ns, {}, score, sequence};
        for (const LayerKey& key : table.keys()) stored.layers.push_back(intern(key));
    }
    void remove(const std::string& model) { models_.erase(model); }
    [[nodiscard]] bool contains(const std::string& model) const { return models_.contains(model); }
    [[nodiscard]] std::size_t size() const { return models_.size(); }
    [[nodiscard]] std::string any(Random& random) const {
        return std::next(models_.begin(), below(random, models_.size()))->first;
    }

    [[nodiscard]] std::vector<Match> best_matches(const LayerTable& table, const Query& query) {
        std::vector<std::uint32_t> position_of(ids_.size(), absent);
        for (std::uint32_t i = 0; i < table.size(); ++i) {
            const auto found = ids_.find(table.key(i));
            if (found != ids_.end()) position_of[found->second] = i;
        }
        std::vector<Match> matches;
        for (const auto& [model, stored] : models_) {
            if (stored.ns != query.ns) continue;
            if (std::count(query.exclude.begin(), query.exclude.end(), model) != 0) continue;
            Match match{model, stored.score, stored.sequence, 0, 0, {}};
            for (const std::uint32_t layer : stored.layers) {
                const std::uint32_t position = position_of[layer];
                if (position == absent) continue;
                match.positions.push_back(position);
                match.layers += 1;
                match.bytes += table.nbytes(position);
            }
            if (match.layers < std::max(query.min_layers, 1U)) continue;
            std::sort(match.positions.begin(), match.positions.end());
            matches.push_back(std::move(match));
        }
        std::sort(matches.begin(), matches.end(), [&](const Match& a, const Match& b) {
            const bool layers = query.weight == Weight::layers;
            const std::uint64_t weight_a = layers ? a.layers : a.bytes;
            const std::uint64_t weight_b = layers ? b.layers : b.bytes;
            if (weight_a != weight_b) return weight_a > weight_b;
            const bool nan_a = std::isnan(a.score);
            const bool nan_b = std::isnan(b.score);
            if (nan_a != nan_b) return nan_b;
            if (!nan_a && a.score != b.score) return a.score > b.score;
            return a.sequence > b.sequence;
        });
        if (matches.size() > query.count) matches.resize(query.count);
        return matches;
    }

  private:
    static constexpr std::uint32_t absent = 0xffff'ffff;
    struct Stored {
        std::string ns;
        std::vector<std::uint32_t> layers;
        double score = 0;
        std::uint64_t sequence = 0;
    };
    std::uint32_t intern(const LayerKey& key) {
        return ids_.emplace(key, static_cast<std::uint32_t>(ids_.size())).first->second;
    }
    std::map<std::string, Stored> models_;
    std::unordered_map<LayerKey, std::uint32_t> ids_;
};

void expect_equal(const std::vector<Match>& found, const std::vector<Match>& expected,
                  const std::string& when) {
    ASSERT_EQ(found.size(), expected.size()) << when;
    for (std::size_t i = 0; i < found.size(); ++i) {
        ASSERT_EQ(found[i].model, expected[i].model) << when << ", match " << i;
        ASSERT_EQ(found[i].layers, expected[i].layers) << when << ", match " << i;
        ASSERT_EQ(found[i].bytes, expected[i].bytes) << when << ", match " << i;
        ASSERT_EQ(found[i].positions, expected[i].positions) << when << ", match " << i;
        ASSERT_EQ(found[i].sequence, expected[i].sequence) << when << ", match " << i;
        ASSERT_TRUE(found[i].score == expected[i].score ||
                    (std::isnan(found[i].score) && std::isnan(expected[i].score)))
            << when << ", match " << i;
    }
}

struct Family {
    std::string name;
    std::size_t models;  // about so many stored at a time
    std::size_t size;    // layers of a new architecture
    int kinds;           // fewer: more layers in common by chance
    std::size_t reach;   // how far back an input may lie
    int queries;
};

class AgainstScan : public testing::TestWithParam<Family> {};

// Registers, retires and registers again while asking, and compares each answer with the scan's.
TEST_P(AgainstScan, EveryAnswerIsTheSame) {
    const Family& family = GetParam();
    const int queries = sanitized ? family.queries / 40 : family.queries;
    Random random(family.models * 1000 + family.size);
    const std::vector<std::string> spaces{"", "", "", "digits"};
    const std::vector<double> scores{0.5,
                                     0.5,
                                     0.7,
                                     0.9,
                                     -0.0,
                                     0.0,
                                     nan_score,
                                     std::numeric_limits<double>::infinity(),
                                     -std::numeric_limits<double>::infinity()};
    PrefixIndex index;
    Scan scan;
    std::vector<Architecture> known{
        random_architecture(random, family.size, family.kinds, family.reach)};
    std::uint64_t next_id = 0;
    std::uint64_t next_sequence = 1;
    std::string last_answer;

    for (int asked = 0; asked < queries;) {
        const auto action = random() % 8;
        if (action < 3) {
            const std::size_t target = family.models;
            if (scan.size() < target || random() % 2 == 0) {
                Architecture made =
                    random() % 12 == 0
                        ? random_architecture(random, family.size, family.kinds, family.reach)
                        : mutated(random, known[below(random, known.size())], family.kinds);
                const std::string model =
                    "m" +
                    std::to_string(random() % 8 == 0 ? below(random, next_id + 1) : next_id++);
                const std::string& ns = spaces[below(random, spaces.size())];
                const double score = scores[below(random, scores.size())];
                const std::uint64_t sequence = next_sequence++;
                const LayerTable table = made.table();
                if (scan.contains(model)) {
                    EXPECT_THROW(index.add(model, ns, table, score, sequence), Error);
                } else {
                    index.add(model, ns, table, score, sequence);
                    scan.add(model, ns, table, score, sequence);
                }
                if (known.size() < 4 * family.models) {
                    known.push_back(std::move(made));
                } else {
                    known[below(random, known.size())] = std::move(made);
                }
            } else if (scan.size() != 0) {
                const std::string model = random() % 2 == 0 && scan.contains(last_answer)
                                              ? last_answer
                                              : scan.any(random);
                EXPECT_TRUE(index.remove(model));
                scan.remove(model);
                EXPECT_FALSE(index.contains(model));
            }
            continue;
        }
        const LayerTable table =
            mutated(random, known[below(random, known.size())], family.kinds).table();
        Query query;
        query.ns = spaces[below(random, spaces.size())];
        query.weight = random() % 2 == 0 ? Weight::layers : Weight::bytes;
        query.count = std::array<std::uint32_t, 8>{1, 1, 1, 1, 1, 3, 10, 1000}[random() % 8];
        query.min_layers = std::array<std::uint32_t, 8>{1, 1, 1, 1, 1, 0, 3, 6}[random() % 8];
        if (random() % 4 == 0) {
            query.exclude.push_back(last_answer);
            for (std::uint64_t i = random() % 4; i != 0 && scan.size() != 0; --i) {
                query.exclude.push_back(scan.any(random));
            }
        }
        const std::vector<Match> found = index.best_matches(table, query);
        expect_equal(found, scan.best_matches(table, query),
                     "query " + std::to_string(asked) + " of " + family.name);
        if (HasFatalFailure()) return;
        if (!found.empty()) last_answer = found.front().model;
        ++asked;
    }
}

INSTANTIATE_TEST_SUITE_P(Families, AgainstScan,
                         testing::Values(Family{"chains", 60, 12, 3, 1, 20000},
                                         Family{"small graphs", 40, 6, 2, 6, 30000},
                                         Family{"graphs", 150, 16, 3, 6, 30000},
                                         Family{"wide graphs", 100, 24, 2, 24, 15000},
                                         Family{"large graphs", 60, 150, 4, 12, 4000},
                                         Family{"many models", 1500, 10, 3, 4, 6000},
                                         Family{"few kinds", 400, 8, 1, 8, 10000}),
                         [](const auto& each) {
                             std::string name = each.param.name;
                             std::erase(name, ' ');
                             return name;
                         });

// --- single cases ---

LayerTable chain(std::size_t layers, const std::string& tail = "", std::uint64_t nbytes = 1) {
    std::vector<LayerTable::Layer> made;
    for (std::uint32_t i = 0; i < layers; ++i) {
        made.push_back({"c" + std::to_string(i), {}, nbytes});
        if (i != 0) made.back().requires_ = {i - 1};
    }
    if (!tail.empty()) {
        made.push_back({tail, {}, nbytes});
        if (layers != 0) made.back().requires_ = {static_cast<std::uint32_t>(layers - 1)};
    }
    return LayerTable(std::move(made));
}

LayerTable table_of(std::vector<LayerTable::Layer> layers) {
    return LayerTable(std::move(layers));
}

std::vector<std::string> models_of(const std::vector<Match>& matches) {
    std::vector<std::string> models;
    for (const Match& match : matches) models.push_back(match.model);
    return models;
}

TEST(PrefixIndex, AnEmptyIndexAndAnEmptyQueryMatchNothing) {
    PrefixIndex index;
    EXPECT_THAT(index.best_matches(chain(3), {}), IsEmpty());
    index.add("empty", "", table_of({}), 1);
    index.add("full", "", chain(3), 1);
    EXPECT_THAT(index.best_matches(table_of({}), {}), IsEmpty());
    EXPECT_TRUE(index.contains("empty"));
    EXPECT_TRUE(index.remove("empty"));
}

TEST(PrefixIndex, ARegisteredIdIsRefusedInEveryNamespace) {
    PrefixIndex index;
    index.add("m", "a", chain(2), 0);
    try {
        index.add("m", "b", chain(3), 0);
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::already_exists);
        EXPECT_THAT(error.what(), HasSubstr("'m'"));
    }
    EXPECT_EQ(index.stats().models, 1);
    EXPECT_EQ(index.stats().namespaces, 1);
}

TEST(PrefixIndex, ALayerWithOtherRequirementsIsRefusedAndChangesNothing) {
    PrefixIndex index;
    index.add("m", "", chain(3), 0);
    const LayerTable other = table_of({{"new", {}, 1}, {"c1", {0}, 1}});
    try {
        index.add("n", "", other, 0);
        FAIL();
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::invalid_argument);
        EXPECT_THAT(error.what(), HasSubstr("'c1'"));
    }
    EXPECT_EQ(index.stats().layers, 3);
    index.add("n", "elsewhere", other, 0);
    EXPECT_EQ(index.stats().layers, 5);
}

TEST(PrefixIndex, TheOrderOfRequirementsDoesNotMatter) {
    PrefixIndex index;
    index.add("m", "", table_of({{"a", {}, 1}, {"b", {}, 1}, {"sum", {0, 1, 0}, 1}}), 0);
    index.add("n", "", table_of({{"b", {}, 1}, {"a", {}, 1}, {"sum", {0, 1}, 1}}), 0);
    EXPECT_EQ(index.stats().layers, 3);
    const auto matches = index.best_matches(table_of({{"b", {}, 1}, {"a", {}, 1}}), {.count = 5});
    EXPECT_THAT(models_of(matches), ElementsAre("n", "m"));
}

// A layer without weights is no reason to prefer its owner, and none to overlook it.
TEST(PrefixIndex, LayersWithoutBytesLeaveTiesToTheRank) {
    PrefixIndex index;
    const LayerTable longer = table_of({{"d", {}, 8}, {"relu", {0}, 0}});
    const LayerTable shorter = table_of({{"d", {}, 8}, {"tanh", {0}, 0}});
    index.add("longer", "", longer, 0.1);
    index.add("shorter", "", shorter, 0.9);
    EXPECT_EQ(index.best_matches(longer, {.weight = Weight::bytes}).at(0).model, "shorter");
    EXPECT_EQ(index.best_matches(longer, {.weight = Weight::layers}).at(0).model, "longer");
}

TEST(PrefixIndex, MemoryIsThatOfWhatIsNew) {
    PrefixIndex index;
    index.add("first", "", chain(500), 0);
    const auto before = index.stats();
    for (int i = 0; i < 1000; ++i) {
        index.add("m" + std::to_string(i), "", chain(500, "t" + std::to_string(i)), 0);
    }
    const auto after = index.stats();
    EXPECT_EQ(after.layers, before.layers + 1000);
    EXPECT_LT(after.bytes - before.bytes, 1000 * 300);

    for (int i = 0; i < 1000; ++i) EXPECT_TRUE(index.remove("m" + std::to_string(i)));
    EXPECT_TRUE(index.remove("first"));
    EXPECT_EQ(index.stats().models, 0);
    EXPECT_EQ(index.stats().layers, 0);
    EXPECT_EQ(index.stats().namespaces, 0);
    for (int i = 0; i < 1000; ++i) {
        index.add("m" + std::to_string(i), "", chain(500, "t" + std::to_string(i)), 0);
    }
    EXPECT_LT(index.stats().bytes, after.bytes + 65536) << "freed memory is used again";
}

// --- worst cases: right, and in reasonable time ---

class ManyUnderOne : public testing::TestWithParam<std::string> {};

// Thousands of models of one architecture, or directly below one layer, retired in an order that
// replaces the best one each time, or never.
TEST_P(ManyUnderOne, TheBestIsRightAfterEachRetirement) {
    const int count = sanitized ? 1000 : 20000;
    const bool identical = GetParam().starts_with("identical");
    const bool newest_first = GetParam().ends_with("newest");
    PrefixIndex index;
    for (int i = 0; i < count; ++i) {
        index.add("m" + std::to_string(i), "", chain(3, identical ? "t" : "t" + std::to_string(i)),
                  1);
    }
    for (int i = 0; i < count - 1; ++i) {
        const int retired = newest_first ? count - 1 - i : i;
        const int best = newest_first ? retired - 1 : count - 1;
        ASSERT_TRUE(index.remove("m" + std::to_string(retired)));
        ASSERT_EQ(index.best_matches(chain(3, "query"), {}).at(0).model,
                  "m" + std::to_string(best));
    }
    EXPECT_EQ(index.stats().models, 1);
}

INSTANTIATE_TEST_SUITE_P(Orders, ManyUnderOne,
                         testing::Values("identical_oldest", "identical_newest", "distinct_oldest",
                                         "distinct_newest"),
                         [](const auto& each) { return each.param; });

TEST(PrefixIndex, TakesAGraphOfTenThousandLayers) {
    PrefixIndex index;
    const LayerTable deep = chain(10'000);
    index.add("deep", "", deep, 0);
    index.add("half", "", chain(5'000, "end"), 1);

    const auto matches = index.best_matches(chain(9'000, "new"), {.count = 2});

    ASSERT_THAT(models_of(matches), ElementsAre("deep", "half"));
    EXPECT_EQ(matches[0].layers, 9'000);
    EXPECT_EQ(matches[1].layers, 5'000);
    EXPECT_TRUE(index.remove("deep"));
    EXPECT_EQ(index.stats().layers, 5'001);
}

TEST(PrefixIndex, TakesALayerWithAThousandRequirements) {
    std::vector<LayerTable::Layer> layers;
    LayerTable::Layer sum{"sum", {}, 0};
    for (std::uint32_t i = 0; i < 1000; ++i) {
        layers.push_back({"in" + std::to_string(i), {}, 1});
        sum.requires_.push_back(i);
    }
    layers.push_back(sum);
    const LayerTable table(layers);
    PrefixIndex index;
    index.add("a", "", table, 0);
    index.add("b", "", table, 0);
    layers.pop_back();
    EXPECT_EQ(index.best_matches(LayerTable(layers), {}).at(0).layers, 1000);
    EXPECT_TRUE(index.remove("b"));
    EXPECT_EQ(index.best_matches(table, {}).at(0).layers, 1001);
    EXPECT_TRUE(index.remove("a"));
    EXPECT_EQ(index.stats().layers, 0);
}

// --- threads ---

// Readers beside a writer that registers and retires: every answer is a model that can exist, with
// the prefix that it has. Fixed models make one answer certain at every moment.
TEST(PrefixIndex, AnswersWhileModelsComeAndGo) {
    PrefixIndex index;
    for (std::size_t i = 1; i <= 50; ++i) index.add("fixed" + std::to_string(i), "", chain(i), 0.5);
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> asked{0};
    std::atomic<std::uint64_t> wrong{0};
    const auto read = [&](std::uint64_t seed) {
        Random random(seed);
        do {
            const std::size_t depth = 1 + below(random, 50);
            const auto matches = index.best_matches(chain(depth, "query"), {.count = 3});
            const bool right =
                !matches.empty() && matches[0].layers == depth &&
                matches[0].positions.size() == depth &&
                std::all_of(matches.begin(), matches.end(), [](const Match& match) {
                    return match.model.starts_with("fixed") || match.model.starts_with("m");
                });
            if (!right) ++wrong;
            (void)index.contains("fixed1");
            (void)index.stats();
            ++asked;
        } while (!stop);
    };
    std::thread first(read, 1);
    std::thread second(read, 2);
    Random random(3);
    std::vector<std::string> live;
    for (int i = 0; i < (sanitized ? 3000 : 30000); ++i) {
        if (live.size() < 40 || random() % 2 == 0) {
            const std::string model = "m" + std::to_string(i);
            const std::size_t depth = below(random, 50);
            const std::string tail =
                "t" + std::to_string(depth) + "_" + std::to_string(random() % 9);
            index.add(model, random() % 4 == 0 ? "other" : "", chain(depth, tail), 0.7);
            live.push_back(model);
        } else {
            std::swap(live[below(random, live.size())], live.back());
            EXPECT_TRUE(index.remove(live.back()));
            live.pop_back();
        }
    }
    stop = true;
    first.join();
    second.join();
    EXPECT_EQ(wrong, 0);
    EXPECT_GE(asked, 2);
    EXPECT_EQ(index.stats().models, 50 + live.size());
}

// Two writers at once: all models are there in the end, each once.
TEST(PrefixIndex, TwoWritersDoNotDisturbEachOther) {
    PrefixIndex index;
    std::atomic<int> refused{0};
    const auto write = [&] {
        for (int i = 0; i < 500; ++i) {
            try {
                index.add("m" + std::to_string(i), "", chain(5, "t" + std::to_string(i % 7)), 0);
            } catch (const Error&) {
                ++refused;
            }
        }
    };
    std::thread first(write);
    std::thread second(write);
    first.join();
    second.join();
    EXPECT_EQ(refused, 500);
    EXPECT_EQ(index.stats().models, 500);
    EXPECT_EQ(index.stats().layers, 12);
}

}  // namespace
}  // namespace cpp_store
