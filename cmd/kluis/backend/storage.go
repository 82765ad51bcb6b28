package backend

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/internal/config"
	"kluis/internal/postgres"
)

// OpenStorage connects as the owner of the tables.
func OpenStorage(ctx context.Context, c config.Operator) (*postgres.Storage, error) {
	conf, err := database("migrate_url", c.MigrateURL, c.PasswordFile)
	if err != nil {
		return nil, err
	}
	conf.StatementTimeout = 0 // copying a month may take hours
	return postgres.NewStorage(ctx, conf)
}

// roomTimeout bounds the look-ups of a scrape.
const roomTimeout = 2 * time.Second

var (
	strayBytes = prometheus.NewDesc("kluis_storage_stray_bytes",
		"Size of the partition for readings of days whose month has none. Anything but 0 is an alarm.", nil, nil)
	monthsUntil = prometheus.NewDesc("kluis_storage_months_until_timestamp_seconds",
		"The day from which on no month can take readings: kluis storage months must have run before.", nil, nil)
	copyingSince = prometheus.NewDesc("kluis_storage_copying_since_timestamp_seconds",
		"When the oldest copy of a month was begun that is not in its place yet: it is being put in order, or that was interrupted. 0: there is none.", nil, nil)
)

// roomCollector asks the database at every scrape.
type roomCollector struct{ db *postgres.Custodian }

// Describe implements prometheus.Collector.
func (c roomCollector) Describe(out chan<- *prometheus.Desc) {
	out <- strayBytes
	out <- monthsUntil
	out <- copyingSince
}

// Collect implements prometheus.Collector.
func (c roomCollector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), roomTimeout)
	defer cancel()
	r, err := c.db.Room(ctx)
	if err != nil {
		return // nothing is said of what is not known; other alarms tell of the database
	}
	out <- prometheus.MustNewConstMetric(strayBytes, prometheus.GaugeValue, float64(r.StrayBytes))
	out <- prometheus.MustNewConstMetric(monthsUntil, prometheus.GaugeValue, float64(r.Until.Start(time.UTC).Unix()))
	since := 0.0
	if !r.Copying.IsZero() {
		since = float64(r.Copying.Unix())
	}
	out <- prometheus.MustNewConstMetric(copyingSince, prometheus.GaugeValue, since)
}
