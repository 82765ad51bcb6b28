package kluis

import (
	"context"
	"fmt"
	"iter"
	"net/url"
	"time"

	"kluis/openapi/client"
)

// pageSize is what the contract allows at most.
const pageSize = 1000

// MeteringPoints goes through all metering points the caller has a legal basis
// for now, page by page as they are used. An error ends it.
func (k *Client) MeteringPoints(ctx context.Context) iter.Seq2[client.MeteringPoint, error] {
	return func(yield func(client.MeteringPoint, error) bool) {
		limit := pageSize
		p := &client.ListMeteringPointsParams{Limit: &limit}
		for {
			res, err := k.api.ListMeteringPointsWithResponse(ctx, p)
			if err != nil {
				yield(client.MeteringPoint{}, err)
				return
			}
			page, err := answer(res.JSON200, res.HTTPResponse, res.Body)
			if err != nil {
				yield(client.MeteringPoint{}, err)
				return
			}
			for _, m := range page.MeteringPoints {
				if !yield(m, nil) {
					return
				}
			}
			if page.Links.Next == nil {
				return
			}
			// Only the cursor is taken of the link: the token goes nowhere else.
			next, err := url.Parse(*page.Links.Next)
			cursor := ""
			if err == nil {
				cursor = next.Query().Get("cursor")
			}
			if cursor == "" || p.Cursor != nil && cursor == *p.Cursor {
				yield(client.MeteringPoint{}, fmt.Errorf("kluis: the link to the next page leads nowhere"))
				return
			}
			p.Cursor = &cursor
		}
	}
}

// Changes asks once for changes: since an instant, or, with a cursor, since the
// answer that the cursor is of. The answer's Cursor is for the next time: store
// it together with what was done. More says whether to ask again at once.
func (k *Client) Changes(ctx context.Context, since time.Time, cursor string) (*client.Changes, error) {
	limit := pageSize
	p := &client.ListChangesParams{Limit: &limit}
	switch {
	case cursor != "":
		p.Cursor = &cursor
	case !since.IsZero():
		p.Since = &since
	}
	res, err := k.api.ListChangesWithResponse(ctx, p)
	if err != nil {
		return nil, err
	}
	return answer(res.JSON200, res.HTTPResponse, res.Body)
}

// Poll goes through the changes after a cursor, and then waits for more, asking
// at each interval, until ctx ends or an error does. Each batch that is handed
// out has the cursor to store with it; Poll goes on when it was dealt with.
// Empty answers are handed out too, for their cursor is newer.
func (k *Client) Poll(ctx context.Context, cursor string, every time.Duration) iter.Seq2[*client.Changes, error] {
	return func(yield func(*client.Changes, error) bool) {
		for {
			batch, err := k.Changes(ctx, time.Time{}, cursor)
			if !yield(batch, err) || err != nil {
				return
			}
			cursor = batch.Cursor
			if batch.More {
				continue
			}
			if err := k.sleep(ctx, every); err != nil {
				yield(nil, err)
				return
			}
		}
	}
}
