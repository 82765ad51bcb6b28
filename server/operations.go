package server

import (
	"context"
	"net/http"
	"time"

	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/meter"
	"kluis/openapi"
)

// LogHead is the newest signed head of the audit log, as it is stored; nobody
// has verified it here.
type LogHead struct {
	Size     uint64
	SignedAt time.Time
}

// CryptoserverDetails are what a cryptoserver says of itself.
type CryptoserverDetails struct {
	ServerID, Version string
	StartedAt         time.Time
	Receipts          uint64 // given since
	Roles             []string
	ControlAt         time.Time // of the newest head of the control feed it has; zero: none
	Tokens            []HSMToken
}

// HSMToken is the state of a token.
type HSMToken struct{ Role, Label, State string }

// operations is how all parts fare, each asked at the same time: what does not
// answer keeps no other waiting, and nobody longer than probeTimeout.
type operations struct {
	backends
	stored bool // lastStored is known
	head   *LogHead
}

func (s *Server) askParts(ctx context.Context) operations {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	type stored struct {
		at  time.Time
		err error
	}
	cryptoservers, last, head := make(chan []Cryptoserver, 1), make(chan stored, 1), make(chan *LogHead, 1)
	go func() { cryptoservers <- s.health.Cryptoservers(ctx) }()
	go func() {
		at, err := s.health.LastStored(ctx)
		last <- stored{at, err}
	}()
	go func() {
		h, err := s.health.LogHead(ctx)
		if err != nil {
			h = nil
		}
		head <- h
	}()
	o := operations{backends: backends{database: s.health.Database(ctx) == nil}}
	o.cryptoservers, o.head = <-cryptoservers, <-head
	at := <-last
	o.lastStored, o.stored = at.at, at.err == nil
	return o
}

// GetOperations answers GET /v1/operations.
func (s *Server) GetOperations(ctx context.Context, _ openapi.GetOperationsRequestObject) (openapi.GetOperationsResponseObject, error) {
	rec := s.oversee(ctx, callOf(ctx))
	o := s.askParts(ctx)
	return s.overseen(ctx, rec, s.renderOperations(eventOf(ctx), &o))
}

func (b *body) VisitGetOperationsResponse(w http.ResponseWriter) error { return b.write(w) }

func partState(up bool) openapi.PartState {
	if up {
		return openapi.PartUp
	}
	return openapi.PartDown
}

func (s *Server) renderOperations(ev *event, o *operations) openapi.Operations {
	now := s.now()
	out := openapi.Operations{
		InteractionId: ev.interaction, At: now.UTC().Truncate(time.Second),
		Database:      openapi.PartStatus{Status: partState(o.database)},
		Cryptoservers: []openapi.CryptoserverStatus{},
		Gateway:       openapi.GatewayStatus{Version: s.version, StartedAt: s.started.UTC().Truncate(time.Second)},
	}
	for _, c := range o.cryptoservers {
		w := openapi.CryptoserverStatus{Name: c.Name, Status: partState(c.Serves)}
		if d := c.Details; d != nil {
			receipts, started := int(d.Receipts), d.StartedAt.UTC().Truncate(time.Second)
			roles, tokens := append([]string{}, d.Roles...), []openapi.HsmToken{}
			for _, t := range d.Tokens {
				tokens = append(tokens, openapi.HsmToken{Role: t.Role, Label: t.Label, State: t.State})
			}
			w.ServerId, w.Version, w.StartedAt, w.Receipts, w.Roles, w.Tokens = &d.ServerID, &d.Version, &started, &receipts, &roles, &tokens
			if !d.ControlAt.IsZero() {
				at := d.ControlAt.UTC().Truncate(time.Second)
				w.ControlAt = &at
			}
		}
		out.Cryptoservers = append(out.Cryptoservers, w)
	}
	if o.head != nil {
		out.Checkpoint = &openapi.CheckpointStatus{Size: int(o.head.Size), SignedAt: o.head.SignedAt.UTC().Truncate(time.Second)}
	}
	if o.stored {
		y, m, d := (meter.DayOf(now, s.profile.Location()) - 1).Date()
		in := openapi.IngestStatus{LastCompleteDay: openapi_types.Date{Time: time.Date(y, m, d, 0, 0, 0, 0, time.UTC)}}
		if !o.lastStored.IsZero() {
			at := o.lastStored.UTC().Truncate(time.Second)
			in.LastStoredAt = &at
		}
		out.Ingest = &in
	}
	return out
}
