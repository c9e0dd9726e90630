#include "cpp_store/layer_table.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <string>

#include "cpp_store/error.hpp"

namespace cpp_store {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

LayerTable example() {
    return LayerTable(
        {{"input", {}, 0}, {"dense", {0}, 12}, {"näher", {0}, 7}, {"add", {2, 1}, 0}});
}

std::string message_of(std::vector<LayerTable::Layer> layers) {
    try {
        const LayerTable table(std::move(layers));
    } catch (const Error& error) {
        EXPECT_EQ(error.code(), Errc::invalid_argument);
        return error.what();
    }
    return "no error";
}

TEST(LayerTable, ShowsWhatItWasMadeOf) {
    const LayerTable table = example();
    EXPECT_EQ(table.size(), 4);
    EXPECT_EQ(table.name(2), "näher");
    EXPECT_EQ(table.nbytes(1), 12);
    EXPECT_EQ(table.total_nbytes(), 19);
    EXPECT_THAT(table.requires_of(3), ElementsAre(2, 1));
    EXPECT_EQ(table.key(1), layer_key("dense"));
}

TEST(LayerTable, FindsEveryKeyAndNoOther) {
    std::vector<LayerTable::Layer> layers;
    for (int i = 0; i < 10'000; ++i) layers.push_back({"layer" + std::to_string(i), {}, 1});
    const LayerTable table(std::move(layers));
    for (std::size_t i = 0; i < table.size(); ++i) ASSERT_EQ(table.find(table.key(i)), i);
    EXPECT_EQ(table.find(layer_key("another")), table.size());
    EXPECT_EQ(LayerTable(std::vector<LayerTable::Layer>()).find(layer_key("another")), 0);
}

TEST(LayerTable, NamesWhatIsWrong) {
    using std::string_literals::operator""s;
    EXPECT_THAT(message_of({{"", {}, 0}}), HasSubstr("position 0 has no name"));
    EXPECT_THAT(message_of({{std::string(65'536, 'x'), {}, 0}}), HasSubstr("65536 bytes"));
    EXPECT_THAT(message_of({{"a", {}, 0}, {"a", {}, 0}}), HasSubstr("'a' (position 1)"));
    EXPECT_THAT(message_of({{"a", {0}, 0}}), HasSubstr("does not come before it"));
    EXPECT_THAT(message_of({{"a", {9}, 0}}), HasSubstr("there are only 1 layers"));
    constexpr std::uint64_t half = std::uint64_t{1} << 62;
    EXPECT_THAT(message_of({{"a", {}, half}, {"b", {}, half}}), HasSubstr("2^63"));
    for (const std::string& name : {"\xff"s, "\xc0\xaf"s, "\xed\xa0\x80"s, "\xf4\x90\x80\x80"s,
                                    "a\xe2\x82"s, "\x80"s, "\xf0\x8f\xbf\xbf"s}) {
        EXPECT_THAT(message_of({{name, {}, 0}}), HasSubstr("not UTF-8"));
    }
    EXPECT_EQ(message_of({{"\xf4\x8f\xbf\xbf\xe2\x82\xac\xc3\xa4\0"s, {}, 0}}), "no error");
}

TEST(LayerTable, SurvivesEncoding) {
    for (const LayerTable& table : {example(), LayerTable(std::vector<LayerTable::Layer>())}) {
        const std::vector<std::byte> bytes = table.encode();
        const LayerTable copy = LayerTable::decode(bytes);
        EXPECT_EQ(copy, table);
        EXPECT_EQ(copy.total_nbytes(), table.total_nbytes());
        EXPECT_EQ(copy.encode(), bytes);
    }
}

// Every length and every single wrong byte: an error, or another table that encodes to these bytes.
TEST(LayerTable, SurvivesWrongBytes) {
    const std::vector<std::byte> bytes = example().encode();
    for (std::size_t size = 0; size < bytes.size(); ++size) {
        EXPECT_THROW((void)LayerTable::decode(std::span(bytes).first(size)), Error) << size;
    }
    std::mt19937_64 random(7);
    int accepted = 0;
    for (int round = 0; round < 20'000; ++round) {
        std::vector<std::byte> wrong = bytes;
        for (std::uint64_t i = 1 + random() % 3; i != 0; --i) {
            wrong[random() % wrong.size()] = static_cast<std::byte>(random());
        }
        try {
            ASSERT_EQ(LayerTable::decode(wrong).encode(), wrong);
            ++accepted;
        } catch (const Error& error) {
            ASSERT_EQ(error.code(), Errc::protocol);
        }
    }
    EXPECT_GT(accepted, 0);
}

TEST(LayerTable, BelievesNoLength) {
    std::vector<std::byte> bytes = example().encode();
    for (const std::size_t field : {8, 12, 16}) {
        std::vector<std::byte> wrong = bytes;
        for (std::size_t i = 0; i < 4; ++i) wrong[field + i] = std::byte{0xff};
        EXPECT_THROW((void)LayerTable::decode(wrong), Error);
    }
}

TEST(TensorSpec, CountsBytes) {
    EXPECT_EQ((TensorSpec{DType::float32, {}}).nbytes(), 4);
    EXPECT_EQ((TensorSpec{DType::bfloat16, {3, 5}}).nbytes(), 30);
    constexpr std::uint64_t large = std::uint64_t{1} << 40;
    EXPECT_EQ((TensorSpec{DType::float64, {large, 0, large}}).nbytes(), 0);
    EXPECT_THROW((void)(TensorSpec{DType::float64, {large, large}}).nbytes(), Error);
    constexpr std::uint64_t most = (std::uint64_t{1} << 63) - 1;
    EXPECT_EQ((TensorSpec{DType::int8, {most}}).nbytes(), most);
    EXPECT_THROW((void)(TensorSpec{DType::int8, {most + 1}}).nbytes(), Error);
}

TEST(DTypes, HaveNamesAndSizes) {
    for (std::size_t i = 0; i < dtype_count; ++i) {
        const auto dtype = static_cast<DType>(i);
        EXPECT_EQ(dtype_from_name(dtype_name(dtype)), dtype);
        EXPECT_GE(item_size(dtype), 1);
    }
    try {
        (void)dtype_from_name("float31");
        FAIL();
    } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("'float31'"));
        EXPECT_THAT(error.what(), HasSubstr("bfloat16"));
    }
}

}  // namespace
}  // namespace cpp_store
