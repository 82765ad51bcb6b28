package main

import (
	"context"
	"log/slog"
	"time"

	"kluis/cmd/kluis/backend"
)

// heartbeat is how often the head of the control feed is signed: a dozen times
// before a cryptoserver that hears nothing stops serving.
const heartbeat = 5 * time.Second

type keysFeedCmd struct{ target }

// Help says more than fits a line.
func (keysFeedCmd) Help() string {
	return `The daemon has the head of the control feed signed every 5 seconds and tells it to every cryptoserver under custodian.addresses; one that hears nothing for 60 seconds opens, seals, mints and rewraps nothing. It writes JSON lines to stdout, "ready" when the first cryptoserver is up to date, and runs until SIGTERM. Supervise it: deploy/systemd/kluis-custodian.service. The other keys commands may run beside it, on the same host and with the same feed_copy_file.

When the database was put back to an older state it signs nothing, says so, and goes on by itself once kluis keys reapply has run.`
}

func (c *keysFeedCmd) Run(ctx context.Context, s streams) error {
	conf, err := c.load()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewJSONHandler(s.out, nil))
	k, err := backend.OpenCustodian(ctx, conf, log)
	if err != nil {
		return err
	}
	defer k.Close()
	ready := []any{"cryptoservers", conf.Custodian.Addresses}
	if conf.CustodianMetricsListen != "" {
		address, stop, err := serveMetrics("custodian_metrics_listen", conf.CustodianMetricsListen, k.Register, log)
		if err != nil {
			return err
		}
		defer stop()
		ready = append(ready, "metrics_address", address)
	}
	go func() {
		select {
		case <-k.Ready():
			log.Info("ready", ready...)
		case <-ctx.Done():
		}
	}()
	if err := k.Run(ctx, heartbeat); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}
