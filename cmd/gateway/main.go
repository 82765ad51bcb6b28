// Command gateway serves the REST API: suppliers over mutual TLS on the one
// side, PostgreSQL and the cryptoservers on the other. It holds no key and is
// built without cgo.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"kluis/internal/config"
	"kluis/internal/timerslack"
	"kluis/server"
)

// version is set by the linker.
var version = "unknown"

// spareHeap is counted as in use by the garbage collector, though no page of it
// ever is: the heap then grows by that much, and what is in use, before it is
// collected. A request leaves far more garbage than it keeps, and with a heap of
// a few megabytes collecting it cost up to a fifth of this process's CPU. A
// greater percentage would do as much for that, and let the heap of a busy
// gateway grow to a multiple (docs/PERFORMANCE.md).
const spareHeap = 20 << 20

// drainExtra is how much longer than the request timeout the process waits for
// requests under way once it is told to stop: they may still store steps and
// write records.
const drainExtra = 10 * time.Second

type cli struct {
	Config  string           `required:"" type:"existingfile" placeholder:"FILE" help:"Configuration (YAML)."`
	Version kong.VersionFlag `help:"Print the version."`
}

func main() {
	var c cli
	kong.Parse(&c,
		kong.Name("gateway"),
		kong.Description("The REST API of Kluis."),
		kong.Vars{"version": version},
		kong.UsageOnError(),
	)
	if err := timerslack.Relax(); err != nil {
		fmt.Fprintln(os.Stderr, "gateway: it will take more CPU:", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := realMain(ctx, c.Config, slog.New(slog.NewJSONHandler(os.Stdout, nil))); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}

// realMain serves until ctx ends.
func realMain(ctx context.Context, configFile string, log *slog.Logger) (err error) {
	// Readings pass through this process, and must not reach a disk.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("core dumps cannot be switched off: %w", err)
	}
	spare := make([]byte, spareHeap)
	defer runtime.KeepAlive(spare)
	cfg, err := config.Load[config.Gateway](configFile)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	parts, closeParts, err := connect(ctx, cfg, log, reg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeParts()) }()
	srv, err := server.New(parts)
	if err != nil {
		return err
	}
	tlsConfig, err := config.ServerTLS(cfg.TLS)
	if err != nil {
		return err
	}
	api, err := srv.HTTPServer(tlsConfig)
	if err != nil {
		return err
	}
	probes := srv.ProbeServer(promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))

	apiListener, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	probeListener, err := net.Listen("tcp", cfg.MetricsListen)
	if err != nil {
		return errors.Join(fmt.Errorf("metrics_listen: %w", err), apiListener.Close())
	}
	log.Info("ready", "address", apiListener.Addr().String(), "metrics_address", probeListener.Addr().String(), "version", version)

	// Whichever ends first ends the other; the probes answer until the API
	// has drained.
	serving, stopServing := context.WithCancel(ctx)
	probing, stopProbing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	defer stopProbing()
	go srv.WatchChanges(serving)
	probed := make(chan error, 1)
	go func() {
		probed <- server.Serve(probing, probes, probeListener, time.Second)
		stopServing()
	}()
	err = server.Serve(serving, api, apiListener, time.Duration(cfg.RequestTimeout)+drainExtra)
	stopProbing()
	return errors.Join(err, <-probed)
}
