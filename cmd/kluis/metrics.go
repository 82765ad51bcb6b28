package main

import (
	"fmt"
	"log/slog"
	"net"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"kluis/internal/scrape"
)

// serveMetrics serves what a daemon registers, and what the process takes, on
// the address of a setting, until stop.
func serveMetrics(setting, listen string, register func(prometheus.Registerer) error, log *slog.Logger) (address string, stop func(), err error) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := register(reg); err != nil {
		return "", nil, err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", setting, err)
	}
	return l.Addr().String(), scrape.Serve(l, reg, log), nil
}
