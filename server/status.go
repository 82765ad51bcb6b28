package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	openapi_types "github.com/oapi-codegen/runtime/types"

	"kluis/meter"
	"kluis/openapi"
)

// probeTimeout bounds how long the back ends are asked: a probe that waits as
// long as a request would say little.
const probeTimeout = 2 * time.Second

// backends is how the back ends fare.
type backends struct {
	database      bool
	cryptoservers []Cryptoserver
	lastStored    time.Time
}

func (b *backends) serving() int {
	n := 0
	for _, c := range b.cryptoservers {
		if c.Serves {
			n++
		}
	}
	return n
}

// ready: readings can be served.
func (b *backends) ready() bool { return b.database && b.serving() > 0 }

func (s *Server) probe(ctx context.Context) backends {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	cryptoservers := make(chan []Cryptoserver, 1)
	go func() { cryptoservers <- s.health.Cryptoservers(ctx) }()
	b := backends{database: s.health.Database(ctx) == nil}
	b.cryptoservers = <-cryptoservers
	return b
}

// GetStatus answers GET /v1/status.
func (s *Server) GetStatus(ctx context.Context, _ openapi.GetStatusRequestObject) (openapi.GetStatusResponseObject, error) {
	b := s.probe(ctx)
	if b.database {
		asked, cancel := context.WithTimeout(ctx, probeTimeout)
		defer cancel()
		var err error
		if b.lastStored, err = s.health.LastStored(asked); err != nil {
			b.database, b.lastStored = false, time.Time{}
		}
	}
	st := s.status(eventOf(ctx), &b)
	rendered, err := json.Marshal(st)
	if err != nil {
		return nil, fmt.Errorf("rendering the status: %w", err)
	}
	st.InteractionId, st.At = uuid.Nil, time.Time{}
	return s.tagged(ctx, "getStatus", rendered, st)
}

func (s *Server) status(ev *event, b *backends) openapi.Status {
	now := s.now()
	st := openapi.Status{InteractionId: ev.interaction, Status: openapi.StatusStatusUP, At: now.UTC().Truncate(time.Second)}
	st.Profile.Country, st.Profile.Version = s.profile.Country(), s.profile.Version()
	st.Profile.TimeZone, st.Profile.RetentionMonths = s.profile.Location().String(), s.profile.RetentionMonths()
	add := func(name string, kind openapi.BackendKind, up bool) {
		state := openapi.BackendStatusUP
		if !up {
			state, st.Status = openapi.BackendStatusDOWN, openapi.StatusStatusDEGRADED
		}
		st.Backends = append(st.Backends, openapi.Backend{Name: name, Kind: kind, Status: state})
	}
	add("database", openapi.Database, b.database)
	for _, c := range b.cryptoservers {
		add(c.Name, openapi.Cryptoserver, c.Serves)
	}
	if !b.ready() {
		st.Status = openapi.StatusStatusDOWN
	}
	if !b.lastStored.IsZero() {
		at := b.lastStored.UTC()
		st.Freshness.LastStoredAt = &at
	}
	y, m, d := (meter.DayOf(now, s.profile.Location()) - 1).Date()
	st.Freshness.LastCompleteDay = &openapi_types.Date{Time: time.Date(y, m, d, 0, 0, 0, 0, time.UTC)}
	return st
}

func (b *body) VisitGetStatusResponse(w http.ResponseWriter) error { return b.write(w) }

// GetHealth answers GET /healthz: this process answers.
func (s *Server) GetHealth(context.Context, openapi.GetHealthRequestObject) (openapi.GetHealthResponseObject, error) {
	return openapi.GetHealth200JSONResponse{Status: openapi.ProbeStatusOk}, nil
}

// GetReadiness answers GET /readyz.
func (s *Server) GetReadiness(ctx context.Context, _ openapi.GetReadinessRequestObject) (openapi.GetReadinessResponseObject, error) {
	b := s.probe(ctx)
	if !b.ready() {
		retry := 2
		return openapi.GetReadiness503JSONResponse{
			Body:    openapi.Probe{Status: openapi.ProbeStatusUnavailable},
			Headers: openapi.GetReadiness503ResponseHeaders{RetryAfter: &retry},
		}, nil
	}
	return openapi.GetReadiness200JSONResponse{Status: openapi.ProbeStatusOk}, nil
}
