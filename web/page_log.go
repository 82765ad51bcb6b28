package web

// logRoutes are those of templates/log.html.
func (p *Portal) logRoutes() []route { return nil }
