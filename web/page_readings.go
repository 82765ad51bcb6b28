package web

// readingsRoutes are those of templates/readings.html.
func (p *Portal) readingsRoutes() []route { return nil }
