package ingest

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Totals says what became of many metering points' blocks, all fields together.
type Totals struct {
	Points int `json:"meteringPoints"`
	// Blocks are those offered; the others say what became of them, as Counts.
	Blocks    int `json:"blocks"`
	Stored    int `json:"stored"`
	Corrected int `json:"corrected"`
	Unchanged int `json:"unchanged"`
	Empty     int `json:"empty"`
}

func (t *Totals) add(points int, counts []Counts) {
	t.Points += points
	for _, c := range counts {
		t.Blocks += c.Days
		t.Stored += c.Stored
		t.Corrected += c.Corrected
		t.Unchanged += c.Unchanged
		t.Empty += c.Empty
	}
}

const (
	// atOnce metering points are stored together unless Options say otherwise.
	atOnce = 500
	// manyParallel batches are under way: while one is stored, the next is
	// looked up and sealed.
	manyParallel = 2
)

// Many stores what comes of many metering points, a part at a time: each part is
// stored as by Days, all or nothing, and when one fails those before it are
// stored. Storing the same again changes nothing, so whoever is told of an error
// begins anew. Give them in ascending order of EAN if that costs nothing: what is
// stored together lies together.
//
// At most three parts are in memory. Progress counts blocks of parts that are
// done, without a total.
func (g *Ingester) Many(ctx context.Context, points iter.Seq[Point], opt Options) (Totals, error) {
	size := opt.AtOnce
	if size <= 0 {
		size = atOnce
	}
	progress := opt.Progress
	opt.Progress = nil
	var mu sync.Mutex
	var total Totals
	group, grouped := errgroup.WithContext(ctx)
	group.SetLimit(manyParallel)
	for part := range parts(points, size) {
		if grouped.Err() != nil {
			break
		}
		group.Go(func() error {
			counts, err := g.Days(grouped, part, opt)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			total.add(len(part), counts)
			if progress != nil {
				progress(total.Blocks, 0)
			}
			return nil
		})
	}
	err := group.Wait()
	if err == nil {
		err = context.Cause(ctx) // it may have ended between two parts
	}
	if err != nil {
		err = fmt.Errorf("after %d metering points: %w", total.Points, err)
	}
	return total, err
}

// parts cuts a sequence, and puts each part in the order of EAN.
func parts(points iter.Seq[Point], size int) iter.Seq[[]Point] {
	return func(yield func([]Point) bool) {
		var part []Point
		for p := range points {
			part = append(part, p)
			if len(part) == size {
				if !yield(inOrder(part)) {
					return
				}
				part = nil
			}
		}
		if len(part) > 0 {
			yield(inOrder(part))
		}
	}
}

func inOrder(part []Point) []Point {
	slices.SortStableFunc(part, func(a, b Point) int { return int(min(1, max(-1, a.EAN.Int64()-b.EAN.Int64()))) })
	return part
}
