package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/google/uuid"

	"kluis/authz"
	"kluis/internal/audit"
	"kluis/meter"
	"kluis/openapi"
)

const (
	// defaultLimit is the page size when none is said.
	defaultLimit = 100
	// maxCandidates bounds the work for one page: a supplier most of whose
	// customers have left it long ago gets shorter pages, and reaches the end.
	maxCandidates = 4000
)

// ListMeteringPoints answers GET /v1/metering-points.
func (s *Server) ListMeteringPoints(ctx context.Context, r openapi.ListMeteringPointsRequestObject) (openapi.ListMeteringPointsResponseObject, error) {
	limit := defaultLimit
	if r.Params.Limit != nil {
		limit = *r.Params.Limit
	}
	c, ev := callOf(ctx), eventOf(ctx)
	of, err := s.cursors.of(cursorList, c.caller.Supplier(), [32]byte{})
	if err != nil {
		return nil, err
	}
	var after meter.EAN
	if r.Params.Cursor != nil {
		if after, err = s.listCursor(c.caller.Supplier(), *r.Params.Cursor); err != nil {
			return nil, failParams(paramErrors{{Pointer: "/query/cursor", Reason: cursorFault(err)}})
		}
	}
	points, next, err := s.points(ctx, c, after, limit)
	if err != nil {
		return nil, err
	}
	page := openapi.MeteringPoints{InteractionId: ev.interaction, MeteringPoints: points}
	if !next.IsZero() {
		u := *s.public
		u.Path = "/v1/metering-points"
		u.RawQuery = url.Values{"cursor": {of.seal(listState(next), s.now())}, "limit": {strconv.Itoa(limit)}}.Encode()
		link := u.String()
		page.Links.Next = &link
	}
	rendered, err := json.Marshal(page)
	if err != nil {
		return nil, fmt.Errorf("rendering a list: %w", err)
	}
	rec := s.newRecord(ctx, c.caller, s.now())
	rec.Operation, rec.Outcome = audit.List, audit.Given
	if err := s.record(ctx, rec); err != nil {
		return nil, err
	}
	page.InteractionId, page.Links.Next = uuid.Nil, nil
	same := struct {
		openapi.MeteringPoints
		Next string
		Day  int64 // a link's cursor grows old: nobody keeps one for longer
	}{MeteringPoints: page}
	if !next.IsZero() {
		same.Next, same.Day = next.String(), s.now().Unix()/(24*60*60)
	}
	return s.tagged(ctx, "listMeteringPoints", rendered, same)
}

// listCursor opens a cursor of a list: the metering point after which it goes
// on.
func (s *Server) listCursor(caller meter.GLN, text string) (meter.EAN, error) {
	of, err := s.cursors.of(cursorList, caller, [32]byte{})
	if err != nil {
		return meter.EAN{}, err
	}
	state, err := of.open(text, s.now())
	if err != nil {
		return meter.EAN{}, err
	}
	return parseListState(state)
}

// points finds a page of metering points above after, and the last one looked
// at when there may be more. The indexes only propose; the sealed legal file
// of each decides.
func (s *Server) points(ctx context.Context, c *call, after meter.EAN, limit int) (page []openapi.MeteringPoint, next meter.EAN, err error) {
	release, err := s.turn(ctx, c.caller.Supplier())
	if err != nil {
		return nil, meter.EAN{}, err
	}
	defer release()
	page = []openapi.MeteringPoint{} // [] and not null
	for seen := 0; ; {
		want := limit - len(page)
		candidates, err := s.facts.Candidates(ctx, c.caller.Supplier(), after, want)
		if err != nil {
			return nil, meter.EAN{}, fail(databaseUnavailable, fmt.Errorf("metering points: %w", err))
		}
		for _, k := range candidates {
			after = k.EAN
			file, err := s.listedFile(k.LegalFile, k.EAN)
			if err != nil {
				// One damaged file must not take the whole list away: it
				// gives nothing, and the metric calls the operator.
				continue
			}
			if bases := authz.BasesNow(c.caller, file, s.profile, s.now()); len(bases) > 0 {
				page = append(page, point(k.EAN, file.Commodity(), bases))
			}
		}
		if len(candidates) < want {
			return page, meter.EAN{}, nil
		}
		if seen += len(candidates); len(page) == limit || seen >= maxCandidates {
			return page, after, nil
		}
	}
}

func point(ean meter.EAN, commodity meter.Commodity, bases []meter.Basis) openapi.MeteringPoint {
	p := openapi.MeteringPoint{Ean: ean.String(), Commodity: openapi.MeteringPointCommodity(commodity.String())}
	for _, b := range bases {
		p.LegalBases = append(p.LegalBases, openapi.LegalBasis(b.String()))
	}
	return p
}

func (b *body) VisitListMeteringPointsResponse(w http.ResponseWriter) error { return b.write(w) }
