-- One body for every request; at the end one line of JSON.
local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()

function done(summary, latency)
   local errors, seconds = summary.errors, summary.duration / 1e6
   io.write(string.format(
      '{"window_s": %f, "rate": %f, "errors": %d, "p50_ms": %f, "p99_ms": %f, "max_ms": %f}\n',
      seconds, (summary.requests - errors.status) / seconds,
      errors.status + errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
