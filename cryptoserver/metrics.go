package cryptoserver

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"kluis/cryptoserver/control"
	"kluis/cryptoserver/cryptopb"
)

type metrics struct {
	calls    *prometheus.CounterVec
	refusals *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	blocks   *prometheus.CounterVec
	units    *prometheus.CounterVec
	tokenUp  *prometheus.GaugeVec

	superseded *prometheus.CounterVec
}

// noHead is the age of a control feed of which no head is known: a day, since
// infinity cannot be drawn.
const noHead = 24 * time.Hour

func newMetrics(reg prometheus.Registerer, feed *control.Feed, journal Journal, points *points, now func() time.Time) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_cryptoserver_calls_total", Help: "Calls by method and gRPC code.",
		}, []string{"method", "code"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_cryptoserver_refusals_total", Help: "Calls refused or failed, by method and reason, as the client is told it.",
		}, []string{"method", "reason"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kluis_cryptoserver_call_seconds", Help: "Duration of calls by method.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}, []string{"method"}),
		blocks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_cryptoserver_blocks_total",
			Help: "Blocks by outcome: opened, outside_grant (asked for beyond the evidence, not opened), duplicate (not opened), damaged, erased (not opened), unknown_epoch (those of the damaged whose data key names a KEK epoch that was never active), sealed, resealed.",
		}, []string{"outcome"}),
		units: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_cryptoserver_units_total",
			Help: "Metering points asked for by outcome: ok, no_relation, evidence_invalid, evidence_outdated, evidence_superseded (older than the control feed allows).",
		}, []string{"outcome"}),
		superseded: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kluis_cryptoserver_superseded_total",
			Help: "Sealed facts presented in a version below the first that counts by the control feed, by kind: legal_file, supplier_record. A few after a change are requests on their way; more are replays.",
		}, []string{"kind"}),
		tokenUp: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "kluis_cryptoserver_token_up", Help: "1 while the HSM token of a role passes its check.",
		}, []string{"role"}),
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "kluis_cryptoserver_" + name, Help: help}, f)
	}
	for _, c := range []prometheus.Collector{
		m.calls, m.refusals, m.seconds, m.blocks, m.units, m.tokenUp, m.superseded,
		gauge("control_age_seconds", "Age of the newest head of the control feed; a day when none is known. Beyond 60 nothing is opened, sealed, minted or rewrapped.", func() float64 {
			if at := feed.Head().At; !at.IsZero() {
				return now().Sub(at).Seconds()
			}
			return noHead.Seconds()
		}),
		gauge("control_sequence", "Last entry of the control feed that is known.", func() float64 { return float64(feed.Head().Sequence) }),
		gauge("active_epoch", "KEK epoch under which data keys are minted; 0: none.", func() float64 { return float64(feed.Active()) }),
		gauge("minimum_versions", "Metering points and suppliers of which the control feed names the first version that counts.", func() float64 {
			files, suppliers := feed.Minimums()
			return float64(files + suppliers)
		}),
		gauge("token_points_filled", "How much of the room is taken in which the metering points opened on each live access token are counted, from 0 to 1. When it is full, nothing is opened on further tokens.", points.filled),
		gauge("erased_keys", "Data keys that the control feed erases by name.", func() float64 { return float64(feed.ErasedKeys()) }),
	} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	if journal != nil {
		for _, c := range []prometheus.Collector{
			gauge("journal_up", "1 while the journal can be written. When it is not, nothing is opened or sealed.", func() float64 {
				if journal.Err() != nil {
					return 0
				}
				return 1
			}),
			gauge("journal_bytes", "Size of the journal's files. What the auditor does not have is never removed.", func() float64 { return float64(journal.Use().Bytes) }),
			gauge("journal_read_age_seconds", "Since the auditor read the journal last, or since the start.", func() float64 { return time.Since(journal.Use().Read).Seconds() }),
		} {
			if err := reg.Register(c); err != nil {
				return nil, err
			}
		}
	}
	// Alarms need the zero: an increase counts from it.
	for _, zero := range []struct {
		method  string
		reasons []cryptopb.Reason
	}{
		{"Open", []cryptopb.Reason{cryptopb.ReasonTokenBusy, cryptopb.ReasonTokenSpent, cryptopb.ReasonPointsFull}},
		{"Seal", []cryptopb.Reason{cryptopb.ReasonSealRate, cryptopb.ReasonSealedTooOften}},
		{"SignControl", []cryptopb.Reason{cryptopb.ReasonControlFork}},
		{"PutControl", []cryptopb.Reason{cryptopb.ReasonControlFork}},
		{unknownMethod, []cryptopb.Reason{cryptopb.ReasonIdentityNotAllowed}},
	} {
		for _, reason := range zero.reasons {
			m.refusals.WithLabelValues(zero.method, string(reason))
		}
	}
	for _, method := range cryptopb.Cryptoserver_ServiceDesc.Methods {
		m.refusals.WithLabelValues(method.MethodName, string(cryptopb.ReasonInternal))
		m.refusals.WithLabelValues(method.MethodName, string(cryptopb.ReasonIdentityNotAllowed))
	}
	for _, outcome := range []string{"ok", "no_relation", "evidence_invalid", "evidence_outdated"} {
		m.units.WithLabelValues(outcome)
	}
	m.superseded.WithLabelValues(supersededFile)
	m.superseded.WithLabelValues(supersededRecord)
	m.units.WithLabelValues("evidence_superseded")
	for _, outcome := range []string{"opened", "outside_grant", "duplicate", "damaged", "erased", "unknown_epoch", "sealed", "resealed"} {
		m.blocks.WithLabelValues(outcome)
	}
	return m, nil
}
