/* hotset from C: load a model within a budget, generate, look at the statistics, give memory back, tell errors apart, and run a second
 * session beside the first.
 *
 *     cargo build --release -p hotset-c
 *     cc -Ibindings/c bindings/c/example.c -Ltarget/release -lhotset_c -Wl,-rpath,target/release -o example
 *     ./example assets/moe-s-q4_0.gguf
 */
#include <stdio.h>
#include <string.h>

#include "hotset.h"

/* Prints a piece of the text and counts the pieces; stops after forty. */
static int on_text(const char *text, size_t len, void *user) {
  int *pieces = user;
  fwrite(text, 1, len, stdout);
  return ++*pieces < 40;
}

/* Prints the error, frees it and gives its code. */
static hotset_code report(const char *what, hotset_error *error) {
  hotset_code code = hotset_error_code(error);
  printf("%s: code %d: %s\n", what, (int)code, hotset_error_message(error));
  hotset_error_free(error);
  return code;
}

/* The experts' reads so far. */
static int print_stats(hotset_session *session, hotset_stats *stats) {
  hotset_error *error;
  memset(stats, 0, sizeof *stats);
  stats->size = sizeof *stats;
  if (hotset_get_stats(session, stats, &error) != HOTSET_CODE_OK) {
    report("statistics", error);
    return 1;
  }
  printf("budget %llu bytes, %llu tokens in the context, decoding: %llu hits, %llu misses\n",
         (unsigned long long)stats->memory_bytes, (unsigned long long)stats->n_past,
         (unsigned long long)stats->decode_hits, (unsigned long long)(stats->decode_late + stats->decode_misses));
  return 0;
}

/* The most likely token after a text, without generating one. */
static int likely(hotset_session *session, const char *text) {
  static float logits[1 << 18];
  uint32_t tokens[64], best = 0;
  char word[256];
  size_t n = 0, n_logits = 0, len = 0;
  hotset_error *error;
  if (hotset_tokenize(session, text, strlen(text), 1, 0, tokens, 64, &n, &error) != HOTSET_CODE_OK ||
      hotset_feed(session, tokens, n, &error) != HOTSET_CODE_OK ||
      hotset_logits(session, logits, sizeof logits / sizeof *logits, &n_logits, &error) != HOTSET_CODE_OK) {
    report("logits", error);
    return 1;
  }
  for (size_t i = 1; i < n_logits; i++)
    if (logits[i] > logits[best]) best = (uint32_t)i;
  if (hotset_detokenize(session, &best, 1, word, sizeof word, &len, &error) != HOTSET_CODE_OK) {
    report("detokenize", error);
    return 1;
  }
  printf("\"%s\" is %zu tokens, and the likeliest of %zu next ones is \"%.*s\"\n", text, n, n_logits, (int)len, word);
  return 0;
}

int main(int argc, char **argv) {
  const char *model = argc > 1 ? argv[1] : "assets/moe-s-q4_0.gguf", *prompt = "Once upon a time there was";
  hotset_session *session, *second;
  hotset_error *error;
  hotset_stats stats;
  hotset_finish finish;
  int pieces = 0;

  if (hotset_abi_version() != HOTSET_ABI_VERSION) {
    fprintf(stderr, "the library is not the header's\n");
    return 1;
  }

  /* Too small a budget is an error that says what would do. */
  hotset_options options = {.size = sizeof options, .memory_bytes = 1 << 20, .n_ctx = 256, .session_only = 1};
  if (hotset_open(model, &options, &session, &error) != HOTSET_CODE_BUDGET_TOO_SMALL) {
    report("a budget of 1 MiB", error);
    return 1;
  }
  options.memory_bytes = hotset_error_least_bytes(error) + (8 << 20);
  report("a budget of 1 MiB", error);
  if (hotset_open(model, &options, &session, &error) != HOTSET_CODE_OK) {
    report(model, error);
    return 1;
  }

  hotset_text_options text = {.size = sizeof text, .max_tokens = 64, .temperature = 0.8f, .top_p = 0.95f, .seed = 1};
  if (hotset_generate(session, prompt, strlen(prompt), &text, on_text, &pieces, &finish, &error) != HOTSET_CODE_OK) {
    report("generate", error);
    return 1;
  }
  printf("\nfinish %d after %d pieces\n", (int)finish, pieces);
  if (print_stats(session, &stats)) return 1;

  /* Memory that is needed elsewhere: the same text, more reads. */
  if (hotset_set_memory(session, stats.least_bytes, &error) != HOTSET_CODE_OK ||
      hotset_reset(session, &error) != HOTSET_CODE_OK) {
    report("resize", error);
    return 1;
  }
  pieces = 0;
  if (hotset_generate(session, prompt, strlen(prompt), &text, on_text, &pieces, NULL, &error) != HOTSET_CODE_OK) {
    report("generate", error);
    return 1;
  }
  printf("\n");
  if (print_stats(session, &stats)) return 1;

  /* A second session of the same model; the first is still there. */
  options.policy = "lru";
  if (hotset_open(model, &options, &second, &error) != HOTSET_CODE_OK) {
    report("second", error);
    return 1;
  }
  if (likely(second, "The old")) return 1;
  hotset_close(second);

  options.policy = "best";
  if (hotset_open(model, &options, &second, &error) == HOTSET_CODE_OK || second != NULL) return 1;
  if (report("policy", error) != HOTSET_CODE_INVALID) return 1;
  if (hotset_open("no-such.gguf", NULL, &second, &error) == HOTSET_CODE_OK) return 1;
  if (report("no file", error) != HOTSET_CODE_IO) return 1;
  if (hotset_decode(NULL, 1, &error) == HOTSET_CODE_OK || report("no session", error) != HOTSET_CODE_NULL_ARGUMENT) return 1;
  if (hotset_decode(session, 4000000000u, NULL) != HOTSET_CODE_INVALID) return 1;
  hotset_close(session);
  return 0;
}
