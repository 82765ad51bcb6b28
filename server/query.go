package server

import (
	"context"
	"crypto/sha256"
	"io"
	"net/http"
	"time"

	"kluis/openapi"
)

// queryBodyTime is how long the body of queryReadings may take to come in: it
// may be much longer than others.
const queryBodyTime = 20 * time.Second

// takeQuery reads the body of queryReadings. What is wrong with it is told
// together with other faults, once the rest of it was read, too: who still sends
// would not see the answer.
func (s *Server) takeQuery(w http.ResponseWriter, r *http.Request) error {
	// Where that cannot be, the server's own, shorter time holds.
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(queryBodyTime))
	c := callOf(r.Context())
	asked, faults, err := parseManyQuery(r.Body, s.profile, s.now())
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return err
	}
	if c.faults = faults; len(faults) == 0 {
		asked.digest = asked.digestFor(c.caller.Supplier())
		c.asked = &asked
	}
	return nil
}

// checkQuery finds the faults of a queryReadings request.
func checkQuery(s *Server, r *http.Request) paramErrors {
	c := callOf(r.Context())
	errs := c.faults
	if c.asked != nil && c.asked.cursor != "" && c.media != "" {
		if _, err := s.openPlace(c); err != nil {
			errs.add("/body/cursor", cursorFault(err))
		}
	}
	return errs
}

// placesOf are the cursors of a query. They go on in the media type they were
// given in: the digest of a manifest is over lines of one kind.
func (s *Server) placesOf(c *call) (cursorsOf, error) {
	binding := sha256.New()
	binding.Write(c.asked.digest[:])
	io.WriteString(binding, c.media)
	return s.cursors.of(cursorQuery, c.caller.Supplier(), [32]byte(binding.Sum(nil)))
}

// openPlace is where the query is to go on.
func (s *Server) openPlace(c *call) (place, error) {
	of, err := s.placesOf(c)
	if err != nil {
		return place{}, err
	}
	if c.asked.cursor == "" {
		return newPlace(c.asked.digest), nil
	}
	state, err := of.open(c.asked.cursor, s.now())
	if err != nil {
		return place{}, err
	}
	return parsePlace(state)
}

// QueryReadings answers POST /v1/readings/query: a page or a stream, as the
// media type says; see VisitQueryReadingsResponse.
func (s *Server) QueryReadings(ctx context.Context, _ openapi.QueryReadingsRequestObject) (openapi.QueryReadingsResponseObject, error) {
	c := callOf(ctx)
	q, err := s.newQuerying(ctx, c)
	if err != nil {
		return nil, err
	}
	return q, nil
}
