// All of the viewer, for a page that has one.
import { Bitmaps } from "./bitmaps.js";
import { Viewer } from "./viewer.js";
import { Closer } from "./closer.js";
